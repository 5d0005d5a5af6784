// VPERMB on a CPU that does not have it: the fault is caught, the instruction done by hand, and the program goes on. So
// the very code that is shipped runs here, slowly.
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>

#include <array>
#include <cstdint>
#include <cstring>

namespace {

using Vector = std::array<uint8_t, 64>;

// Where the saved state has the upper halves of ymm0..15 and zmm0..15, and zmm16..31. Asked once: asking traps, too.
struct Offsets {
  size_t ymm, zmm, more;
};
Offsets offsets;

size_t component_offset(unsigned component) { // Intel's manual, volume 1, chapter 13
  unsigned a, b, c, d;
  __cpuid_count(13, component, a, b, c, d);
  return b;
}

// The parts of register `number` in a saved state: xmm, the upper half of ymm, the upper half of zmm; or all at once.
struct Part {
  size_t offset, bytes;
};
std::array<Part, 3> parts(unsigned number) {
  if (number >= 16) return {{{offsets.more + (number - 16) * 64, 64}, {0, 0}, {0, 0}}};
  return {{{160 + number * 16, 16}, {offsets.ymm + number * 16, 16}, {offsets.zmm + number * 32, 32}}};
}

Vector read(const uint8_t* state, unsigned number) {
  Vector value;
  size_t at = 0;
  for (const Part& part : parts(number)) {
    std::memcpy(value.data() + at, state + part.offset, part.bytes);
    at += part.bytes;
  }
  return value;
}

void write(uint8_t* state, unsigned number, const Vector& value) {
  size_t at = 0;
  for (const Part& part : parts(number)) {
    std::memcpy(state + part.offset, value.data() + at, part.bytes);
    at += part.bytes;
  }
  uint64_t present;
  std::memcpy(&present, state + 512, sizeof present);
  present |= number >= 16 ? 1u << 7 : 1u << 1 | 1u << 2 | 1u << 6;
  std::memcpy(state + 512, &present, sizeof present);
}

void on_illegal(int, siginfo_t*, void* context) {
  auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
  const auto* code = reinterpret_cast<const uint8_t*>(machine.gregs[REG_RIP]);
  // EVEX.512.66.0F38.W0 8D /r between registers, without a mask.
  const bool is_vpermb = code[0] == 0x62 && (code[1] & 0x0f) == 2 && (code[2] & 0x87) == 0x05 && (code[3] & 0xf7) == 0x40 &&
                         code[4] == 0x8d && code[5] >> 6 == 3;
  if (!is_vpermb) {
    signal(SIGILL, SIG_DFL); // the instruction faults again, for good
    return;
  }
  const auto inverted = [&](int byte, int bit, int as) { return unsigned(~code[byte] >> bit & 1) << as; };
  const unsigned to = (code[5] >> 3 & 7) | inverted(1, 7, 3) | inverted(1, 4, 4);
  const unsigned from = (code[5] & 7) | inverted(1, 5, 3) | inverted(1, 6, 4);
  const unsigned by = (~code[2] >> 3 & 15) | inverted(3, 3, 4);
  auto* state = reinterpret_cast<uint8_t*>(machine.fpregs);
  const Vector table = read(state, from), index = read(state, by);
  Vector result;
  for (size_t i = 0; i < result.size(); ++i) result[i] = table[index[i] & 63];
  write(state, to, result);
  machine.gregs[REG_RIP] += 6;
}

// Before main, or when a library is loaded.
[[gnu::constructor]] void install() {
  offsets = {component_offset(2), component_offset(6), component_offset(7)};
  struct sigaction action = {};
  action.sa_sigaction = on_illegal;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, nullptr);
}

} // namespace
