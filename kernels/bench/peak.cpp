// What one core can do: the ceilings the kernels are compared with. Prints one JSON object, all rates in units a second.
//
//   g++ -O2 -std=c++17 -mavx512f peak.cpp -o peak && ./peak
//
// Inner loops are assembly, so that what is timed is what is written. 24 accumulators hide the latency of VPDPBUSD.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr long kLoops = 400000;
constexpr int kRepeats = 15;
alignas(64) uint8_t buffer[28 * 64];

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Rate of the fastest of `kRepeats` runs: what disturbs only slows.
template <typename Body>
double fastest(double count, Body body) {
  double best = 0;
  for (int i = 0; i < kRepeats; ++i) {
    const double begin = now();
    body();
    best = std::max(best, count / (now() - begin));
  }
  return best;
}

#define REPEAT_24(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15) M(16) \
  M(17) M(18) M(19) M(20) M(21) M(22) M(23)
#define LOOP(BODY)                                                                                              \
  asm volatile("mov %0, %%rcx\n1:\n" REPEAT_24(BODY) "dec %%rcx\njnz 1b\n" ::"r"(kLoops), "r"(&buffer[0])       \
               : "rcx", "memory", "cc", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8",  \
                 "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18",        \
                 "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", "zmm29", "zmm30", "zmm31")

// Register operands only.
#define MULTIPLY(i) "vpdpbusd %%zmm31, %%zmm30, %%zmm" #i "\n"
// A step of the C4 kernels: sixteen pixels from the first-level cache, weights in a register.
#define LOAD_MULTIPLY(i) "vmovdqu64 " #i "*64(%1), %%zmm29\nvpdpbusd %%zmm31, %%zmm29, %%zmm" #i "\n"
// The same in one instruction.
#define MULTIPLY_LOADED(i) "vpdpbusd " #i "*64(%1), %%zmm30, %%zmm" #i "\n"
// Weights broadcast from memory, activations in a register: the shared rows of the C4 kernels.
#define MULTIPLY_BROADCAST(i) "vpdpbusd " #i "*4(%1)%{1to16%}, %%zmm30, %%zmm" #i "\n"
// A gather within lanes before every multiplication: nm64 in NHWC, for processors without VPERMB.
#define SHUFFLE_MULTIPLY(i) "vpshufb " #i "*64(%1), %%zmm30, %%zmm29\nvpdpbusd %%zmm31, %%zmm29, %%zmm" #i "\n"

double read_bytes(size_t bytes) {
  auto* memory = static_cast<uint8_t*>(std::aligned_alloc(4096, bytes));
  std::memset(memory, 1, bytes);
  const long passes = std::max<long>(1, long((64u << 20) / bytes));
  const double rate = fastest(double(passes) * double(bytes), [&] {
    for (long pass = 0; pass < passes; ++pass)
      asm volatile(
          "mov %0, %%rax\nmov %1, %%rcx\n1:\n"
          "vmovdqa64 (%%rax), %%zmm0\nvmovdqa64 64(%%rax), %%zmm1\nvmovdqa64 128(%%rax), %%zmm2\n"
          "vmovdqa64 192(%%rax), %%zmm3\nvmovdqa64 256(%%rax), %%zmm4\nvmovdqa64 320(%%rax), %%zmm5\n"
          "vmovdqa64 384(%%rax), %%zmm6\nvmovdqa64 448(%%rax), %%zmm7\nadd $512, %%rax\nsub $512, %%rcx\njnz 1b\n" ::"r"(
              memory),
          "r"(bytes)
          : "rax", "rcx", "memory", "cc", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7");
  });
  std::free(memory);
  return rate;
}

} // namespace

int main() {
  if (!__builtin_cpu_supports("avx512vnni")) {
    std::fprintf(stderr, "this processor has no AVX-512 VNNI\n");
    return 1;
  }
  const double count = 24.0 * kLoops;
  const double cycles = fastest(double(kLoops) * 16, [] {
    asm volatile("mov %0, %%rcx\n1: dec %%rcx\njnz 1b\n" ::"r"(kLoops * 16) : "rcx", "cc");
  });
  std::printf("{\n  \"loop_iterations\": %.4g,\n", cycles);
  std::printf("  \"vpdpbusd\": %.4g,\n", fastest(count, [] { LOOP(MULTIPLY); }));
  std::printf("  \"load + vpdpbusd\": %.4g,\n", fastest(count, [] { LOOP(LOAD_MULTIPLY); }));
  std::printf("  \"vpdpbusd from memory\": %.4g,\n", fastest(count, [] { LOOP(MULTIPLY_LOADED); }));
  std::printf("  \"vpdpbusd broadcast\": %.4g,\n", fastest(count, [] { LOOP(MULTIPLY_BROADCAST); }));
  std::printf("  \"vpshufb + vpdpbusd\": %.4g,\n", fastest(count, [] { LOOP(SHUFFLE_MULTIPLY); }));
  std::printf("  \"L1 bytes\": %.4g,\n", read_bytes(size_t(16) << 10));
  std::printf("  \"L2 bytes\": %.4g,\n", read_bytes(size_t(512) << 10));
  std::printf("  \"L3 bytes\": %.4g,\n", read_bytes(size_t(8) << 20));
  std::printf("  \"memory bytes\": %.4g\n}\n", read_bytes(size_t(256) << 20));
}
