/* Stable sorting along one axis: sort, argsort and top-k.
 *
 * Rows are independent; each is sorted as a list of positions by merging. NaN is
 * greater than all numbers, as in numpy.
 */
#include <stdint.h>

/* In the order of sort_kernels.py. */
enum { F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, BOOL };

typedef struct {
  int32_t dtype, index_dtype;
  int32_t source, values, indices; /* positions among the pointers; -1: absent */
  int64_t length, inner, keep;
  int32_t descending;
} sort_call;

/* Half-precision numbers in the order of these integers; both zeros are equal, all NaNs too. */
static inline int32_t half_order(uint16_t bits) {
  int32_t magnitude = bits & 0x7fff;
  return magnitude <= 0x7c00 && bits & 0x8000 ? -magnitude : magnitude <= 0x7c00 ? magnitude : 0x7fff;
}
#define PLAIN(x, y) ((x) < (y))
#define FLOAT(x, y) ((x) < (y) || ((y) != (y) && (x) == (x)))
#define HALF(x, y) (half_order(x) < half_order(y))

/* Sorts `order` (n positions) by the row's values; `spare` has room for n more. */
#define DEFINE_SORT(NAME, TYPE, LESS)                                                            \
  static void NAME(const TYPE *row, int64_t stride, int64_t n, int descending, int32_t *order,   \
                   int32_t *spare) {                                                             \
    int32_t *from = order, *to = spare;                                                          \
    for (int64_t width = 1; width < n; width *= 2) {                                             \
      for (int64_t start = 0; start < n; start += 2 * width) {                                   \
        int64_t middle = start + width < n ? start + width : n;                                  \
        int64_t end = start + 2 * width < n ? start + 2 * width : n;                             \
        int64_t a = start, b = middle;                                                           \
        for (int64_t i = start; i < end; i++) {                                                  \
          int second = a == middle;                                                              \
          if (!second && b < end) {                                                              \
            TYPE x = row[from[a] * stride], y = row[from[b] * stride];                           \
            second = descending ? LESS(x, y) : LESS(y, x);                                       \
          }                                                                                      \
          to[i] = from[second ? b++ : a++];                                                      \
        }                                                                                        \
      }                                                                                          \
      int32_t *swap = from;                                                                      \
      from = to;                                                                                 \
      to = swap;                                                                                 \
    }                                                                                            \
    if (from != order)                                                                           \
      for (int64_t i = 0; i < n; i++) order[i] = from[i];                                        \
  }

DEFINE_SORT(sort_f16, uint16_t, HALF)
DEFINE_SORT(sort_f32, float, FLOAT)
DEFINE_SORT(sort_f64, double, FLOAT)
DEFINE_SORT(sort_i8, int8_t, PLAIN)
DEFINE_SORT(sort_i16, int16_t, PLAIN)
DEFINE_SORT(sort_i32, int32_t, PLAIN)
DEFINE_SORT(sort_i64, int64_t, PLAIN)
DEFINE_SORT(sort_u8, uint8_t, PLAIN)
DEFINE_SORT(sort_u16, uint16_t, PLAIN)
DEFINE_SORT(sort_u32, uint32_t, PLAIN)
DEFINE_SORT(sort_u64, uint64_t, PLAIN)

static int64_t sort_item_bytes(int32_t dtype) {
  static const int8_t bytes[] = {2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 1};
  return bytes[dtype];
}

static void sort_one(const sort_call *c, const char *row, int32_t *order, int32_t *spare) {
  switch (c->dtype) {
#define SORT_CASE(CODE, NAME, TYPE) \
  case CODE: NAME((const TYPE *)row, c->inner, c->length, c->descending, order, spare); break;
    SORT_CASE(F16, sort_f16, uint16_t)
    SORT_CASE(F32, sort_f32, float)
    SORT_CASE(F64, sort_f64, double)
    SORT_CASE(I8, sort_i8, int8_t)
    SORT_CASE(I16, sort_i16, int16_t)
    SORT_CASE(I32, sort_i32, int32_t)
    SORT_CASE(I64, sort_i64, int64_t)
    SORT_CASE(U8, sort_u8, uint8_t)
    SORT_CASE(U16, sort_u16, uint16_t)
    SORT_CASE(U32, sort_u32, uint32_t)
    SORT_CASE(U64, sort_u64, uint64_t)
    SORT_CASE(BOOL, sort_u8, uint8_t)
#undef SORT_CASE
  }
}

static void sort_store_index(char *to, int32_t dtype, int64_t at, int32_t index) {
  switch (dtype) {
    case F16: break; /* no position fits; refused by the compiler */
    case F32: ((float *)to)[at] = (float)index; break;
    case F64: ((double *)to)[at] = index; break;
    case I8: case U8: case BOOL: ((int8_t *)to)[at] = (int8_t)index; break;
    case I16: case U16: ((int16_t *)to)[at] = (int16_t)index; break;
    case I32: case U32: ((int32_t *)to)[at] = index; break;
    case I64: case U64: ((int64_t *)to)[at] = index; break;
  }
}

/* Sorts rows [begin, end); `scratch` holds two lists of `length` positions, 64-byte aligned. */
static int32_t sort_rows(const sort_call *c, int32_t begin, int32_t end, char *const *pointers,
                         char *scratch) {
  int32_t *order = (int32_t *)scratch;
  int32_t *spare = (int32_t *)(scratch + (4 * c->length + 63) / 64 * 64);
  int64_t item = sort_item_bytes(c->dtype);
  for (int64_t r = begin; r < end; r++) {
    int64_t outer = r / c->inner, inner = r % c->inner;
    const char *row = pointers[c->source] + (outer * c->length * c->inner + inner) * item;
    for (int64_t i = 0; i < c->length; i++) order[i] = (int32_t)i;
    sort_one(c, row, order, spare);
    for (int64_t i = 0; i < c->keep; i++) {
      int64_t at = (outer * c->keep + i) * c->inner + inner;
      if (c->values >= 0)
        memcpy(pointers[c->values] + at * item, row + order[i] * c->inner * item, (size_t)item);
      if (c->indices >= 0)
        sort_store_index(pointers[c->indices], c->index_dtype, at, order[i]);
    }
  }
  return 0;
}
