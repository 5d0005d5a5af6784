// AVX-512 VBMI and VNNI: Ice Lake, Zen 4 and later. Besides what VNNI alone does, windows: VPERMB picks any four channels
// for each of sixteen rows out of one pixel's 64, and VPDPBUSD multiplies them.
//
// For tests on a CPU without it, DP_EMULATE_VBMI replaces it, and VPERMI2B, by others; with DP_TRAP_VBMI the test
// catches the fault.
//
// Target 30 on x86_64: -mavx512f -mavx512bw -mavx512vl -mavx512vnni -mavx512vbmi -mfma -mpopcnt -Wno-uninitialized -Wno-maybe-uninitialized
// GCC's own headers warn about the registers they leave undefined on purpose.
#include "avx512_border.h"
#include "avx512_conv.h"
#include "avx512_gate.h"
#include "avx512_linear.h"

namespace dp {
namespace {

// Pixels of one piece of assembly; such units of one pass: 24 accumulators, four temporaries, indices and weights.
constexpr int kUnit = 4, kMostUnits = 6, kMostVectors = 3;
constexpr int kTileUnits = kMostVectors * DP_PIXELS / kUnit;

#ifdef DP_EMULATE_VBMI
// VPERMB from AVX512BW: the words that hold the even, then the odd results, and the right half of each.
inline __m512i permute_bytes(__m512i index, __m512i table) {
  const __m512i one = _mm512_set1_epi16(1), byte = _mm512_set1_epi16(255);
  const auto pick = [&](__m512i i) {
    const __m512i word = _mm512_permutexvar_epi16(_mm512_srli_epi16(i, 1), table);
    return _mm512_and_si512(_mm512_srlv_epi16(word, _mm512_slli_epi16(_mm512_and_si512(i, one), 3)), byte);
  };
  return _mm512_or_si512(pick(_mm512_and_si512(index, byte)), _mm512_slli_epi16(pick(_mm512_srli_epi16(index, 8)), 8));
}

inline void multiply_unit(__m512i (&acc)[kUnit], const uint8_t* lines, __m512i index, __m512i weights) {
  for (int i = 0; i < kUnit; ++i) multiply(acc[i], permute_bytes(index, load(lines + i * kWindow)), weights);
}
#else
inline __m512i permute_bytes(__m512i index, __m512i table) { return _mm512_permutexvar_epi8(index, table); }

// As assembly for the order: four loads, four permutations, four multiplications, none waiting for the one before it.
[[gnu::always_inline]] inline void multiply_unit(__m512i (&acc)[kUnit], const uint8_t* lines, __m512i index,
                                                 __m512i weights) {
  const auto* line = reinterpret_cast<const __m512i*>(lines);
  __m512i x0, x1, x2, x3;
  asm("vmovdqu64 %[l0], %[x0]\n\tvmovdqu64 %[l1], %[x1]\n\tvmovdqu64 %[l2], %[x2]\n\tvmovdqu64 %[l3], %[x3]\n\t"
      "vpermb %[x0], %[index], %[x0]\n\tvpermb %[x1], %[index], %[x1]\n\t"
      "vpermb %[x2], %[index], %[x2]\n\tvpermb %[x3], %[index], %[x3]\n\t"
      "vpdpbusd %[weights], %[x0], %[a0]\n\tvpdpbusd %[weights], %[x1], %[a1]\n\t"
      "vpdpbusd %[weights], %[x2], %[a2]\n\tvpdpbusd %[weights], %[x3], %[a3]"
      : [a0] "+v"(acc[0]), [a1] "+v"(acc[1]), [a2] "+v"(acc[2]), [a3] "+v"(acc[3]), [x0] "=&v"(x0), [x1] "=&v"(x1),
        [x2] "=&v"(x2), [x3] "=&v"(x3)
      : [l0] "m"(line[0]), [l1] "m"(line[1]), [l2] "m"(line[2]), [l3] "m"(line[3]), [index] "v"(index),
        [weights] "v"(weights));
}
#endif

} // namespace
} // namespace dp

#include "avx512_depthwise.h"

namespace dp {
namespace {

// Four quads of sixteen pixels to four units of sixteen rows, and back: 4 x 4 lanes of sixteen bytes, transposed.
inline void transpose_units(__m512i (&v)[4]) {
  const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
  const __m512i c = _mm512_shuffle_i32x4(v[0], v[1], 0xee), d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
  v[0] = _mm512_shuffle_i32x4(a, b, 0x88);
  v[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
  v[2] = _mm512_shuffle_i32x4(c, d, 0x88);
  v[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

// Sixteen rows of one tile: of each unit a vector, the quads' bytes of its four pixels lane by lane.
struct alignas(DP_ALIGN) Units {
  uint8_t bytes[kTileUnits][kVectorBytes];
};

void load_residual(const Tile& tile, int quad, Units& units) {
  const int quads = std::min(kWindowQuads, tile.last - quad);
  const uint8_t* plane = tile.residual + size_t(quad) * tile.out_plane;
  for (int v = 0; v < tile.vectors; ++v) {
    __m512i pixels[kWindowQuads];
    for (int q = 0; q < kWindowQuads; ++q)
      pixels[q] = q < quads ? load_pixels(plane + size_t(q) * tile.out_plane, tile.lanes, v) : _mm512_setzero_si512();
    transpose_units(pixels);
    for (int u = 0; u < 4; ++u) _mm512_store_si512(units.bytes[v * 4 + u], pixels[u]);
  }
}

void store_units(const Tile& tile, int quad, const Units& units) {
  const int quads = std::min(kWindowQuads, tile.last - quad);
  uint8_t* plane = tile.out + size_t(quad) * tile.out_plane;
  for (int v = 0; v < tile.vectors; ++v) {
    __m512i pixels[kWindowQuads];
    for (int u = 0; u < 4; ++u) pixels[u] = load(units.bytes[v * 4 + u]);
    transpose_units(pixels);
    for (int q = 0; q < quads; ++q) store_pixels(plane + size_t(q) * tile.out_plane, tile.lanes, v, pixels[q]);
  }
}

// Pixel `i` of a unit's bytes: sixteen rows.
[[gnu::always_inline]] inline __m512i rows_of_pixel(__m512i unit, int i) {
  const __m128i first = _mm_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1);
  return _mm512_shuffle_epi8(unit, _mm512_broadcast_i32x4(_mm_or_si128(first, _mm_set1_epi8(char(kUnit * i)))));
}

template <int U, bool kSwish, bool kResidual>
void window_units(const Tile& tile, int quad, int first, const Units& residual, Units& out) {
  const Packed& packed = *tile.packed;
  const Epilogue& e = *tile.epilogue;
  const uint8_t* source = tile.source + size_t(first) * kUnit * kWindow;
  const int32_t* block = packed.block_windows.data() + quad / kWindowQuads;
  const __m512i bias = _mm512_loadu_si512(packed.bias.data() + quad * DP_QUAD);
  __m512i acc[U][kUnit];
#pragma GCC unroll 6
  for (int u = 0; u < U; ++u)
#pragma GCC unroll 4
    for (int i = 0; i < kUnit; ++i) acc[u][i] = bias;
  const int32_t* line = packed.window_lines.data() + block[0];
  const WindowStep* step = packed.windows.data() + block[0];
  for (const WindowStep* end = packed.windows.data() + block[1]; step != end; ++step, ++line) {
    const __m512i index = _mm512_load_si512(step->index), weights = _mm512_load_si512(step->weights);
    const uint8_t* lines = source + *line;
#pragma GCC unroll 6
    for (int u = 0; u < U; ++u) multiply_unit(acc[u], lines + u * kUnit * kWindow, index, weights);
  }
  const __m512 scale = _mm512_loadu_ps(packed.scale.data() + quad * DP_QUAD);
  const __m512i low = _mm512_set1_epi8(char(e.low)), high = _mm512_set1_epi8(char(e.high));
#pragma GCC unroll 6
  for (int u = 0; u < U; ++u) {
    const __m512i unit = kResidual ? load(residual.bytes[first + u]) : _mm512_setzero_si512();
    __m512i rows[kUnit];
#pragma GCC unroll 4
    for (int i = 0; i < kUnit; ++i) rows[i] = requantize<kSwish, kResidual>(acc[u][i], scale, e, rows_of_pixel(unit, i));
    const __m512i words = _mm512_packs_epi32(rows[0], rows[1]), more = _mm512_packs_epi32(rows[2], rows[3]);
    const __m512i bytes = _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(words, more), low), high);
    _mm512_store_si512(out.bytes[first + u], bytes);
  }
}

template <bool kSwish, bool kResidual, int... U>
void run_windows(const Tile& tile, std::integer_sequence<int, U...>) {
  using Pass = void (*)(const Tile&, int, int, const Units&, Units&);
  static constexpr Pass passes[] = {window_units<U + 1, kSwish, kResidual>...};
  const int units = (tile.pixels + kUnit - 1) / kUnit, count = (units + kMostUnits - 1) / kMostUnits;
  Units residual, out = {}; // what no pass computes is stored all the same
  for (int quad = tile.first; quad < tile.last; quad += kWindowQuads) {
    if (kResidual) load_residual(tile, quad, residual);
    for (int pass = 0; pass < count; ++pass) {
      const int first = units * pass / count, last = units * (pass + 1) / count;
      passes[last - first - 1](tile, quad, first, residual, out);
    }
    store_units(tile, quad, out);
  }
}

void tile_or_windows(const Tile& one) {
  if (!one.packed->is_windows) return tile(one);
  const auto units = std::make_integer_sequence<int, kMostUnits>();
  const bool swish = one.epilogue->has_swish();
  if (one.residual) return swish ? run_windows<true, true>(one, units) : run_windows<false, true>(one, units);
  return swish ? run_windows<true, false>(one, units) : run_windows<false, false>(one, units);
}

// to[i] = from[i * stride]
void every(int count, int stride, const uint32_t* from, uint32_t* to) {
  int i = 0;
  if (stride == 1) {
    for (; i + 16 <= count; i += 16) _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
    const __mmask16 rest = __mmask16((1u << (count - i)) - 1);
    _mm512_mask_storeu_epi32(to + i, rest, _mm512_maskz_loadu_epi32(rest, from + i));
    return;
  }
  if (stride == 2) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    for (; i < count; i += 16) {
      const int there = std::min(32, 2 * (count - i) - 1), written = std::min(16, count - i);
      const __mmask16 first = __mmask16((1u << std::min(16, there)) - 1);
      const __mmask16 second = there > 16 ? __mmask16((1u << (there - 16)) - 1) : __mmask16(0);
      _mm512_mask_storeu_epi32(to + i, __mmask16((1u << written) - 1),
                               _mm512_permutex2var_epi32(_mm512_maskz_loadu_epi32(first, from + 2 * i), even,
                                                         _mm512_maskz_loadu_epi32(second, from + 2 * i + 16)));
    }
    return;
  }
  for (; i < count; ++i) to[i] = from[i * stride];
}

void lines(int count, int stride, int quads, size_t plane, const uint8_t* from, uint8_t* to) {
  for (int pixel = 0; pixel < count; pixel += DP_PIXELS) {
    const int here = std::min<int>(DP_PIXELS, count - pixel);
    const __mmask16 present = __mmask16((1u << here) - 1);
    alignas(DP_ALIGN) uint32_t strided[DP_PIXELS];
    __m512i v[16];
#pragma GCC unroll 16
    for (int quad = 0; quad < 16; ++quad) {
      v[quad] = _mm512_setzero_si512();
      if (quad >= quads) continue;
      const auto* pixels = reinterpret_cast<const uint32_t*>(from + size_t(quad) * plane) + size_t(pixel) * stride;
      if (stride == 1) {
        v[quad] = _mm512_maskz_loadu_epi32(present, pixels);
      } else {
        every(here, stride, pixels, strided);
        v[quad] = _mm512_maskz_load_epi32(present, strided);
      }
    }
    transpose(v);
    for (int i = 0; i < here; ++i) _mm512_store_si512(to + size_t(pixel + i) * kWindow, v[i]);
  }
}

#if defined(DP_EMULATE_VBMI) || defined(DP_TRAP_VBMI)
// VPERMI2B: each half by itself, and not joined to the choice between them, which the trap does not know.
inline __m512i permute_two(__m512i low, __m512i index, __m512i high) {
  __m512i first = permute_bytes(index, low), second = permute_bytes(index, high);
  asm("" : "+v"(first), "+v"(second));
  return _mm512_mask_mov_epi8(first, _mm512_movepi8_mask(_mm512_slli_epi16(index, 1)), second);
}
#else
inline __m512i permute_two(__m512i low, __m512i index, __m512i high) { return _mm512_permutex2var_epi8(low, index, high); }
#endif

void mix(const Packed& packed, const uint8_t* from, uint8_t* to, size_t plane) {
  const MixedPart* part = packed.parts.data();
  for (size_t quad = 1; quad < packed.quad_parts.size(); ++quad, to += plane) {
    __m512i x = _mm512_setzero_si512();
    for (const MixedPart* end = packed.parts.data() + packed.quad_parts[quad]; part != end; ++part) {
      const uint8_t* bytes = from + part->from;
      x = _mm512_mask_mov_epi8(x, part->bytes, permute_two(load(bytes), _mm512_load_si512(part->index), load(bytes + kVectorBytes)));
    }
    _mm512_store_si512(to, x);
  }
}

bool runs() {
  bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
#if !defined(DP_EMULATE_VBMI) && !defined(DP_TRAP_VBMI)
  has = has && __builtin_cpu_supports("avx512vbmi");
#endif
  return has;
}

// COSTS, in multiplications of one loaded vector by a quad's weights. On Zen 5 a core does 8.4e9 of those a second and
// 5.5e9 steps of one pixel (load, VPERMB, VPDPBUSD): shared/kernels.md, section 1, measured. Intel has one port for VPERMB,
// so one step a cycle where two multiplications fit: from documentation, not measured. A line is four of the 64 shuffles
// that transpose sixteen, of which Zen 5 does two a cycle and Intel one: counted, not measured.
Target target(const char* name, bool weighs) {
  const bool is_amd = __builtin_cpu_is("amd");
  Target made{name, runs, tile_or_windows, kWidest, rows_for, to_c4, from_c4, copy,
              sums, scale, quantize, max_rows, max_columns};
  made.lines = lines;
  made.depthwise = depthwise;
  made.dot = dot;
  made.mix = mix;
  made.step_cost = is_amd ? 8.4 / 5.5 : 2;
  made.line_cost = is_amd ? 4 : 8;
  made.weighs = weighs;
  return made;
}

} // namespace

Target avx512_vbmi_target() { return target("avx512_vbmi", true); }

#if defined(DP_EMULATE_VBMI) || defined(DP_TRAP_VBMI)
Target avx512_windows_target() { return target("avx512_windows", false); }
#endif

} // namespace dp
