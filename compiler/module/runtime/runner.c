/* tinsmith-run: the model as a program. Usage at the end of this file. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "deviation.h"
#include "tinsmith.h"

extern const tinsmith_module *MODULE_ENTRY(void);

static const tinsmith_module *module;
static char folder[4096];

static void die(const char *what, const char *detail) {
  fprintf(stderr, "tinsmith-run: %s: %s\n", what, detail);
  exit(2);
}

static char *beside(const char *name) {
  char *path = malloc(strlen(folder) + strlen(name) + 2);
  if (!path) die(name, "out of memory");
  sprintf(path, "%s/%s", folder, name);
  return path;
}

static void *allocate(uint64_t bytes) {
  void *memory = NULL;
  if (posix_memalign(&memory, 64, bytes ? (size_t)bytes : 1)) die("tensor", "out of memory");
  memset(memory, 0, (size_t)bytes);
  return memory;
}

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void read_exactly(FILE *file, void *data, uint64_t bytes, const char *path) {
  if (fread(data, 1, (size_t)bytes, file) != bytes) die(path, "is shorter than the module expects");
}

/* ---- .npy ---- */

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

static void shape_text(const tinsmith_tensor *t, char *text, size_t size) {
  size_t used = (size_t)snprintf(text, size, "(");
  for (int i = 0; i < t->ndim && used < size; i++)
    used += (size_t)snprintf(text + used, size - used, "%lld, ", (long long)t->shape[i]);
  if (t->ndim > 1 && used >= 2 && used < size) used -= 2; /* only (n,) keeps its comma */
  else if (t->ndim == 1) used -= 1;
  snprintf(text + used, used < size ? size - used : 0, ")");
}

static void write_npy(const char *path, const tinsmith_tensor *t, const void *data) {
  char shape[512], header[1024];
  shape_text(t, shape, sizeof shape);
  int length = snprintf(header, sizeof header,
                        "{'descr': '%s', 'fortran_order': False, 'shape': %s, }",
                        npy_type(t->dtype), shape);
  int total = (10 + length + 1 + 63) / 64 * 64;
  FILE *file = fopen(path, "wb");
  if (!file) die(path, strerror(errno));
  unsigned char magic[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0,
                             (unsigned char)((total - 10) & 255),
                             (unsigned char)((total - 10) >> 8)};
  int bad = fwrite(magic, 1, 10, file) != 10;
  bad |= fprintf(file, "%s%*s\n", header, total - 11 - length, "") < 0;
  bad |= fwrite(data, 1, (size_t)t->nbytes, file) != t->nbytes;
  if (fclose(file) || bad) die(path, "could not be written");
}

static void read_input(const char *path, const tinsmith_tensor *t, void *data) {
  FILE *file = fopen(path, "rb");
  if (!file) die(path, strerror(errno));
  unsigned char magic[10];
  if (fread(magic, 1, 10, file) == 10 && !memcmp(magic, "\x93NUMPY\x01", 7)) {
    char header[65536], wanted[1024], shape[512];
    size_t length = (size_t)magic[8] | (size_t)magic[9] << 8;
    read_exactly(file, header, length, path);
    header[length < sizeof header ? length : sizeof header - 1] = 0;
    shape_text(t, shape, sizeof shape);
    snprintf(wanted, sizeof wanted, "'shape': %s", shape);
    if (!strstr(header, wanted)) die(path, "does not have the input's shape");
    if (!strstr(header, npy_type(t->dtype))) die(path, "does not have the input's dtype");
    if (!strstr(header, "'fortran_order': False")) die(path, "is stored in Fortran order");
  } else {
    rewind(file);
  }
  read_exactly(file, data, t->nbytes, path);
  if (fgetc(file) != EOF) die(path, "is longer than the module expects");
  fclose(file);
}

/* ---- commands ---- */

static void print_tensors(const char *kind, const tinsmith_tensor *tensors, int count) {
  for (int i = 0; i < count; i++) {
    char shape[512];
    shape_text(&tensors[i], shape, sizeof shape);
    printf("%s %s %s %s\n", kind, tensors[i].name, tensors[i].dtype, shape);
  }
}

static int info(void) {
  printf("model %s\ntarget %s\ntinsmith %s\nsteps %d\nweights %llu bytes\narena %llu bytes\n",
         module->name, module->target, module->version, module->step_count,
         (unsigned long long)module->weights_bytes, (unsigned long long)module->arena_bytes);
  print_tensors("input", module->inputs, module->input_count);
  print_tensors("output", module->outputs, module->output_count);
  return 0;
}

static void check(int status) {
  if (status) die(module->name, module->last_error());
}

static int verify(const char *path, tinsmith_context *context, void **in, void **out) {
  FILE *file = fopen(path, "rb");
  if (!file) die(path, strerror(errno));
  struct {
    char magic[8];
    uint32_t version, inputs, outputs, zero;
    double tolerance;
  } header;
  read_exactly(file, &header, sizeof header, path);
  if (memcmp(header.magic, "TSGOLDEN", 8) || header.version != 1 ||
      header.inputs != (uint32_t)module->input_count ||
      header.outputs != (uint32_t)module->output_count)
    die(path, "holds no golden vectors for this module");
  uint64_t size;
  for (int i = 0; i < module->input_count; i++) {
    read_exactly(file, &size, 8, path);
    if (size != module->inputs[i].nbytes) die(path, "does not fit this module");
    read_exactly(file, in[i], size, path);
  }
  check(module->run(context, (const void *const *)in, out));
  int failed = 0;
  for (int i = 0; i < module->output_count; i++) {
    const tinsmith_tensor *t = &module->outputs[i];
    read_exactly(file, &size, 8, path);
    if (size != t->nbytes) die(path, "does not fit this module");
    void *reference = allocate(size);
    read_exactly(file, reference, size, path);
    double off = deviation(t, out[i], reference);
    int bad = !(off <= header.tolerance);
    printf("%s: largest deviation %.3g of the range, allowed %.3g: %s\n", t->name, off,
           header.tolerance, bad ? "FAILED" : "ok");
    failed |= bad;
    free(reference);
  }
  fclose(file);
  return failed;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static int bench(tinsmith_context *context, void **in, void **out, int runs) {
  double *times = malloc(sizeof(double) * (size_t)runs);
  if (!times) die("bench", "out of memory");
  for (int i = 0; i < (runs < 5 ? runs : 5); i++)
    check(module->run(context, (const void *const *)in, out));
  for (int i = 0; i < runs; i++) {
    double begin = seconds_now();
    check(module->run(context, (const void *const *)in, out));
    times[i] = seconds_now() - begin;
  }
  qsort(times, (size_t)runs, sizeof(double), ascending);
  printf("%d runs, %d threads: median %.4f ms, p95 %.4f ms, best %.4f ms\n", runs,
         module->threads(), 1e3 * times[runs / 2], 1e3 * times[(int)(0.95 * (runs - 1))],
         1e3 * times[0]);
  free(times);
  return 0;
}

static int usage(int status) {
  fprintf(status ? stderr : stdout,
          "usage: tinsmith-run [--weights FILE] [--threads N] COMMAND\n"
          "  info                      inputs, outputs, sizes\n"
          "  run [-o PREFIX] FILE...   one .npy or raw file per input; writes PREFIX<output>.npy\n"
          "  bench [RUNS]              latency over RUNS runs (default 100)\n"
          "  verify [FILE]             compare with golden vectors (default: golden.bin beside)\n"
          "exit status: 0 success, 1 the results disagree, 2 an error\n");
  return status;
}

int main(int argc, char **argv) {
  module = MODULE_ENTRY();
  ssize_t length = readlink("/proc/self/exe", folder, sizeof folder - 1);
  if (length <= 0) strcpy(folder, ".");
  else *strrchr(folder, '/') = 0;
  const char *weights = NULL;
  int threads = 0, at = 1;
  for (; at + 1 < argc && !strncmp(argv[at], "--", 2); at += 2) {
    if (!strcmp(argv[at], "--weights")) weights = argv[at + 1];
    else if (!strcmp(argv[at], "--threads")) threads = atoi(argv[at + 1]);
    else return usage(2);
  }
  if (at >= argc) return usage(2);
  const char *command = argv[at++];
  if (!strcmp(command, "--help") || !strcmp(command, "help")) return usage(0);
  if (!strcmp(command, "info")) return info();
  check(module->open(weights ? weights : beside("weights.bin")));
  check(module->set_threads(threads));
  tinsmith_context *context = module->create();
  if (!context) die(module->name, module->last_error());
  void **in = allocate(sizeof(void *) * (uint64_t)(module->input_count + 1));
  void **out = allocate(sizeof(void *) * (uint64_t)(module->output_count + 1));
  for (int i = 0; i < module->input_count; i++) in[i] = allocate(module->inputs[i].nbytes);
  for (int i = 0; i < module->output_count; i++) out[i] = allocate(module->outputs[i].nbytes);
  int status = 2;
  if (!strcmp(command, "verify")) {
    status = verify(at < argc ? argv[at] : beside("golden.bin"), context, in, out);
  } else if (!strcmp(command, "bench")) {
    int runs = at < argc ? atoi(argv[at]) : 100;
    if (runs < 1) return usage(2);
    status = bench(context, in, out, runs);
  } else if (!strcmp(command, "run")) {
    const char *prefix = "";
    if (at + 1 < argc && !strcmp(argv[at], "-o")) {
      prefix = argv[at + 1];
      at += 2;
    }
    if (argc - at != module->input_count) die("run", "give one file per input (see `info`)");
    for (int i = 0; i < module->input_count; i++)
      read_input(argv[at + i], &module->inputs[i], in[i]);
    check(module->run(context, (const void *const *)in, out));
    for (int i = 0; i < module->output_count; i++) {
      char path[4096], name[256];
      snprintf(name, sizeof name, "%s", module->outputs[i].name);
      for (char *c = name; *c; c++)
        if (*c == '/') *c = '_';
      snprintf(path, sizeof path, "%s%s.npy", prefix, name);
      write_npy(path, &module->outputs[i], out[i]);
      printf("%s\n", path);
    }
    status = 0;
  } else {
    return usage(2);
  }
  module->destroy(context);
  module->close();
  return status;
}
