/* Arrays as files in numpy's .npy format, versions 1 to 3: those that fit a tensor, and no others.
 *
 * Whoever wrote the file may have meant harm: the header is read by a grammar of its own, a
 * dictionary of three entries, and what numpy would refuse is refused.
 */
#ifndef TINSMITH_NPY_H
#define TINSMITH_NPY_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "tinsmith.h"

enum { NPY_LONGEST_HEADER = 65535, NPY_LONGEST_SHAPE = 2048, NPY_ALIGNMENT = 64 };

static const char *npy_type(const char *dtype) {
  static const char *const names[][2] = {
      {"float32", "<f4"}, {"float64", "<f8"}, {"float16", "<f2"}, {"bfloat16", "<u2"},
      {"int8", "|i1"},    {"int16", "<i2"},   {"int32", "<i4"},   {"int64", "<i8"},
      {"uint8", "|u1"},   {"uint16", "<u2"},  {"uint32", "<u4"},  {"uint64", "<u8"},
      {"bool", "|b1"}};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (!strcmp(names[i][0], dtype)) return names[i][1];
  return "|u1";
}

/* The shape as Python prints a tuple; `text` has room for NPY_LONGEST_SHAPE. */
static void npy_shape(const tinsmith_tensor *t, char *text) {
  size_t used = (size_t)snprintf(text, NPY_LONGEST_SHAPE, "(");
  for (int i = 0; i < t->ndim && used < NPY_LONGEST_SHAPE; i++)
    used += (size_t)snprintf(text + used, NPY_LONGEST_SHAPE - used, "%s%lld%s", i ? ", " : "",
                             (long long)t->shape[i], t->ndim == 1 ? "," : "");
  if (used < NPY_LONGEST_SHAPE) snprintf(text + used, NPY_LONGEST_SHAPE - used, ")");
}

/* The rest of a header. Each function takes what it is named after, and returns whether it was
 * there; blanks before it are skipped. */
typedef struct {
  const char *at, *end;
} npy_text;

static void npy_blanks(npy_text *t) {
  while (t->at < t->end && (*t->at == ' ' || *t->at == '\t')) t->at++;
}

static int npy_symbol(npy_text *t, char symbol) {
  npy_blanks(t);
  if (t->at == t->end || *t->at != symbol) return 0;
  t->at++;
  return 1;
}

/* A word in quotes without escapes, of fewer than `room` bytes. */
static int npy_string(npy_text *t, char *word, size_t room) {
  char quote = npy_symbol(t, '\'') ? '\'' : npy_symbol(t, '"') ? '"' : 0;
  size_t length = 0;
  if (!quote) return 0;
  for (; t->at < t->end && *t->at != quote; t->at++) {
    if (*t->at == '\\' || *t->at < ' ' || length + 1 >= room) return 0;
    word[length++] = *t->at;
  }
  word[length] = 0;
  return t->at++ < t->end;
}

static int npy_word(npy_text *t, const char *word) {
  npy_blanks(t);
  size_t length = strlen(word);
  if ((size_t)(t->end - t->at) < length || memcmp(t->at, word, length)) return 0;
  t->at += length;
  return 1;
}

static int npy_number(npy_text *t, int64_t *value) {
  npy_blanks(t);
  const char *begin = t->at;
  *value = 0;
  for (; t->at < t->end && *t->at >= '0' && *t->at <= '9'; t->at++)
    if (__builtin_mul_overflow(*value, 10, value) ||
        __builtin_add_overflow(*value, *t->at - '0', value))
      return 0;
  return t->at - begin == 1 || (t->at > begin && *begin != '0'); /* Python knows no 01 */
}

/* A tuple of numbers; `fits` becomes 0 if it is not the tensor's shape. */
static int npy_tuple(npy_text *t, const tinsmith_tensor *tensor, int *fits) {
  int count = 0, comma = 1;
  if (!npy_symbol(t, '(')) return 0;
  while (!npy_symbol(t, ')')) {
    int64_t value;
    if (!comma || !npy_number(t, &value)) return 0;
    if (count >= tensor->ndim || tensor->shape[count] != value) *fits = 0;
    count++;
    comma = npy_symbol(t, ',');
  }
  if (count != tensor->ndim) *fits = 0;
  return count != 1 || comma; /* (1) is a number */
}

/* Whether an array is the same in both orders: at most one of its extents is not 1. */
static int npy_is_vector(const tinsmith_tensor *t) {
  int long_ones = 0;
  for (int i = 0; i < t->ndim; i++) long_ones += t->shape[i] != 1;
  return long_ones < 2;
}

/* What keeps a header from describing `tensor`, or NULL. */
static const char *npy_mismatch(const char *header, size_t length, const tinsmith_tensor *tensor) {
  static const char *damaged = "has a damaged .npy header";
  npy_text t = {header, header + length};
  char word[16], type[16] = "";
  int seen = 0, fortran = 0, fits = 1;
  if (!npy_symbol(&t, '{')) return damaged;
  while (!npy_symbol(&t, '}')) {
    if (!npy_string(&t, word, sizeof word) || !npy_symbol(&t, ':')) return damaged;
    int entry = !strcmp(word, "descr") ? 1 : !strcmp(word, "fortran_order") ? 2
                : !strcmp(word, "shape") ? 4 : 0;
    if (!entry || seen & entry) return damaged;
    seen |= entry;
    if (entry == 1 && !npy_string(&t, type, sizeof type)) return damaged;
    if (entry == 2 && !(fortran = npy_word(&t, "True")) && !npy_word(&t, "False")) return damaged;
    if (entry == 4 && !npy_tuple(&t, tensor, &fits)) return damaged;
    if (npy_symbol(&t, ',')) continue;
    if (npy_symbol(&t, '}')) break;
    return damaged;
  }
  while (t.at < t.end && (*t.at == ' ' || *t.at == '\n')) t.at++;
  if (seen != 7 || t.at != t.end) return damaged;
  if (strcmp(type, npy_type(tensor->dtype))) return "does not have the input's dtype";
  if (!fits) return "does not have the input's shape";
  if (fortran && !npy_is_vector(tensor)) return "is stored in Fortran order";
  return NULL;
}

/* Reads a .npy file, or as many plain bytes as the tensor has, into `data`: NULL, or what is wrong
 * with the file. */
static const char *npy_read(FILE *file, const tinsmith_tensor *tensor, void *data) {
  static char header[NPY_LONGEST_HEADER];
  unsigned char start[12];
  size_t got = fread(start, 1, 10, file);
  if (got == 10 && !memcmp(start, "\x93NUMPY", 6)) {
    size_t length = (size_t)start[8] | (size_t)start[9] << 8;
    if (start[6] < 1 || start[6] > 3 || start[7]) return "is of an unknown .npy version";
    if (start[6] > 1) {
      if (fread(start + 10, 1, 2, file) != 2) return "has a damaged .npy header";
      length |= (size_t)start[10] << 16 | (size_t)start[11] << 24;
    }
    if (length > sizeof header) return "has a damaged .npy header";
    if (fread(header, 1, length, file) != length) return "has a damaged .npy header";
    const char *mismatch = npy_mismatch(header, length, tensor);
    if (mismatch) return mismatch;
  } else {
    rewind(file);
  }
  if (fread(data, 1, (size_t)tensor->nbytes, file) != tensor->nbytes)
    return "is shorter than the module expects";
  return fgetc(file) == EOF ? NULL : "is longer than the module expects";
}

/* Writes version 1; returns 0, or -1 if that failed. */
static int npy_write(FILE *file, const tinsmith_tensor *t, const void *data) {
  char shape[NPY_LONGEST_SHAPE], header[NPY_LONGEST_SHAPE + 128];
  npy_shape(t, shape);
  int length = snprintf(header, sizeof header,
                        "{'descr': '%s', 'fortran_order': False, 'shape': %s, }",
                        npy_type(t->dtype), shape);
  int total = (10 + length + 1 + NPY_ALIGNMENT - 1) / NPY_ALIGNMENT * NPY_ALIGNMENT;
  unsigned char start[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0,
                             (unsigned char)((total - 10) & 255),
                             (unsigned char)((total - 10) >> 8)};
  if (fwrite(start, 1, 10, file) != 10) return -1;
  if (fprintf(file, "%s%*s\n", header, total - 11 - length, "") < 0) return -1;
  return fwrite(data, 1, (size_t)t->nbytes, file) == t->nbytes ? 0 : -1;
}

#endif
