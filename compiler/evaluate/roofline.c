/* Microbenchmarks of the two ceilings of the roofline model. Built for the machine at hand. */
#include <stddef.h>
#include <stdint.h>

#ifndef VECTOR_BYTES
#error "define VECTOR_BYTES as the width of a vector register"
#endif
typedef float vector __attribute__((vector_size(VECTOR_BYTES)));
/* The same vector at any address a float may have. */
typedef float loose_vector __attribute__((vector_size(VECTOR_BYTES), aligned(4)));

enum { CHAINS = 12, UNROLL = 16 };

/* Twelve independent chains of fused multiply-adds hide the latency of two FMA units.
 * Returns the number of floating-point operations done; *sink keeps the chains alive. */
int64_t roofline_multiply_add(int64_t iterations, float *sink) {
  vector sums[CHAINS];
  vector scale = {0}, offset = {0};
  for (size_t lane = 0; lane < VECTOR_BYTES / 4; ++lane) {
    scale[lane] = 0.5f + sink[0];
    offset[lane] = 1.0f + sink[0];
  }
  for (int chain = 0; chain < CHAINS; ++chain) sums[chain] = offset * (float)chain;
  for (int64_t i = 0; i < iterations; ++i) {
#pragma clang loop unroll(full)
    for (int repeat = 0; repeat < UNROLL; ++repeat) {
#pragma clang loop unroll(full)
      for (int chain = 0; chain < CHAINS; ++chain) sums[chain] = sums[chain] * scale + offset;
    }
  }
  float total = 0.0f;
  for (int chain = 0; chain < CHAINS; ++chain)
    for (size_t lane = 0; lane < VECTOR_BYTES / 4; ++lane) total += sums[chain][lane];
  sink[0] = total;
  return iterations * UNROLL * CHAINS * (VECTOR_BYTES / 4) * 2;
}

/* Reads `count` floats (a multiple of 8 vectors) `passes` times. Returns the bytes read. */
int64_t roofline_read(const float *data, int64_t count, int64_t passes, float *sink) {
  enum { STEP = VECTOR_BYTES / 4 };
  vector sums[8] = {{0}};
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (int64_t i = 0; i + 8 * STEP <= count; i += 8 * STEP) {
#pragma clang loop unroll(full)
      for (int chain = 0; chain < 8; ++chain)
        sums[chain] += *(const loose_vector *)(data + i + chain * STEP);
    }
    /* The compiler must not merge one pass with the next. */
    __asm__ volatile("" : : "r"(data) : "memory");
  }
  for (int chain = 0; chain < 8; ++chain)
    for (size_t lane = 0; lane < STEP; ++lane) sink[0] += sums[chain][lane];
  return passes * (count / (8 * STEP)) * (8 * STEP) * 4;
}
