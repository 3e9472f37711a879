/* AMX in software: tile registers of each thread, with the checks that raise #UD or #GP on
 * hardware. Kernels call these functions where they would execute the instructions. */
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

typedef struct {
  int rows, bytes;
  uint8_t data[16][64];
} tile;

static _Thread_local tile tiles[8];
static _Thread_local int configured;
static atomic_int errors;

static tile *used(int number) {
  tile *t = &tiles[number & 7];
  if (!configured || (number & 0xff) > 7 || !t->rows || !t->bytes) atomic_fetch_add(&errors, 1);
  return t;
}

int emulated_errors(void) { return atomic_exchange(&errors, 0); }

int emulated_ldtilecfg(const uint8_t *configuration) {
  int bad = configuration[0] != 1;
  memset(tiles, 0, sizeof tiles);
  for (int i = 0; i < 8; i++) {
    tiles[i].bytes = configuration[16 + 2 * i] | configuration[17 + 2 * i] << 8;
    tiles[i].rows = configuration[48 + i];
    bad |= tiles[i].bytes > 64 || tiles[i].rows > 16 || !tiles[i].bytes != !tiles[i].rows;
  }
  if (bad) atomic_fetch_add(&errors, 1);
  configured = 1;
  return 0;
}

int emulated_tilerelease(void) {
  memset(tiles, 0, sizeof tiles);
  configured = 0;
  return 0;
}

int emulated_tilezero(int number) {
  tile *t = used(number);
  memset(t->data, 0, sizeof t->data);
  return 0;
}

int emulated_tileloadd64(int number, const char *memory, int64_t stride) {
  tile *t = used(number);
  memset(t->data, 0, sizeof t->data);
  for (int r = 0; r < t->rows; r++) memcpy(t->data[r], memory + r * stride, (size_t)t->bytes);
  return 0;
}

int emulated_tilestored64(int number, char *memory, int64_t stride) {
  tile *t = used(number);
  for (int r = 0; r < t->rows; r++) memcpy(memory + r * stride, t->data[r], (size_t)t->bytes);
  return 0;
}

static int shapes_fit(const tile *c, const tile *a, const tile *b) {
  int fit = c->rows == a->rows && c->bytes == b->bytes && a->bytes == 4 * b->rows;
  if (!fit) atomic_fetch_add(&errors, 1);
  return fit;
}

int emulated_tdpbusd(int accumulators, int data, int weights) {
  tile *c = used(accumulators), *a = used(data), *b = used(weights);
  if (!shapes_fit(c, a, b)) return 0;
  for (int m = 0; m < c->rows; m++)
    for (int n = 0; n < c->bytes / 4; n++) {
      int32_t sum;
      memcpy(&sum, &c->data[m][4 * n], 4);
      for (int k = 0; k < a->bytes; k++)
        sum += (int32_t)a->data[m][k] * (int8_t)b->data[k / 4][4 * n + k % 4];
      memcpy(&c->data[m][4 * n], &sum, 4);
    }
  return 0;
}

static float bfloat16_at(const uint8_t *bytes) {
  uint32_t bits = (uint32_t)bytes[0] << 16 | (uint32_t)bytes[1] << 24;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

int emulated_tdpbf16ps(int accumulators, int data, int weights) {
  tile *c = used(accumulators), *a = used(data), *b = used(weights);
  if (!shapes_fit(c, a, b)) return 0;
  for (int m = 0; m < c->rows; m++)
    for (int n = 0; n < c->bytes / 4; n++) {
      float sum;
      memcpy(&sum, &c->data[m][4 * n], 4);
      for (int k = 0; k < a->bytes / 2; k++)
        sum += bfloat16_at(&a->data[m][2 * k]) * bfloat16_at(&b->data[k / 2][4 * n + 2 * (k % 2)]);
      memcpy(&c->data[m][4 * n], &sum, 4);
    }
  return 0;
}
