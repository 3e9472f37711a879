/* How far a tensor is from its reference, relative to the reference's range (max - min). */
#ifndef TINSMITH_DEVIATION_H
#define TINSMITH_DEVIATION_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "tinsmith.h"

static double half_value(uint16_t h) {
  int exponent = h >> 10 & 31, mantissa = h & 1023;
  double value = exponent == 0    ? ldexp(mantissa, -24)
                 : exponent == 31 ? (mantissa ? NAN : INFINITY)
                                  : ldexp(1024 + mantissa, exponent - 25);
  return h >> 15 ? -value : value;
}

static double element(const tinsmith_tensor *t, const void *data, uint64_t i) {
  const char *d = t->dtype;
  if (!strcmp(d, "float32")) return ((const float *)data)[i];
  if (!strcmp(d, "float64")) return ((const double *)data)[i];
  if (!strcmp(d, "float16")) return half_value(((const uint16_t *)data)[i]);
  if (!strcmp(d, "int32")) return ((const int32_t *)data)[i];
  if (!strcmp(d, "int64")) return (double)((const int64_t *)data)[i];
  if (!strcmp(d, "int16")) return ((const int16_t *)data)[i];
  if (!strcmp(d, "int8")) return ((const int8_t *)data)[i];
  if (!strcmp(d, "uint16")) return ((const uint16_t *)data)[i];
  if (!strcmp(d, "uint32")) return ((const uint32_t *)data)[i];
  if (!strcmp(d, "uint64")) return (double)((const uint64_t *)data)[i];
  if (!strcmp(d, "bfloat16")) {
    uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }
  return ((const uint8_t *)data)[i];
}

static double deviation(const tinsmith_tensor *t, const void *actual, const void *reference) {
  uint64_t count = 1;
  for (int i = 0; i < t->ndim; i++) count *= (uint64_t)t->shape[i];
  double largest = 0, low = INFINITY, high = -INFINITY;
  for (uint64_t i = 0; i < count; i++) {
    double a = element(t, actual, i), r = element(t, reference, i);
    if (isfinite(r)) {
      low = fmin(low, r);
      high = fmax(high, r);
    }
    if (a == r || (isnan(a) && isnan(r))) continue;
    double difference = fabs(a - r);
    if (!isfinite(difference)) return INFINITY;
    largest = fmax(largest, difference);
  }
  if (largest == 0) return 0;
  double range = high - low, magnitude = fmax(fabs(high), fabs(low));
  return largest / (range > 0 ? range : magnitude > 0 ? magnitude : 1);
}

#endif
