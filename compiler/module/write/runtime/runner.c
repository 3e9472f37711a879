/* tinsmith-run: the model as a program. Usage at the end of this file. */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "deviation.h"
#include "npy.h"
#include "tinsmith.h"

enum { LONGEST_NAME = 200, MOST_THREADS = 256, MOST_RUNS = 10000000 };

extern const tinsmith_module *MODULE_ENTRY(void);

static const tinsmith_module *module;
static int64_t *dims;                     /* the sizes of open dimensions */
static tinsmith_tensor *inputs, *outputs; /* with the shapes for these sizes */
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

/* Copies of the tensors whose shapes are those for `dims`. */
static tinsmith_tensor *sized(const tinsmith_tensor *tensors, int count) {
  tinsmith_tensor *copies = allocate(sizeof *copies * (uint64_t)(count + 1));
  for (int i = 0; i < count; i++) {
    int64_t *shape = allocate(sizeof *shape * (uint64_t)(tensors[i].ndim + 1));
    for (int axis = 0; axis < tensors[i].ndim; axis++)
      shape[axis] = tinsmith_extent(&tensors[i], axis, dims);
    copies[i] = tensors[i];
    copies[i].shape = shape;
    copies[i].nbytes = tinsmith_nbytes(&tensors[i], dims);
  }
  return copies;
}

static void choose_sizes(void) {
  inputs = sized(module->inputs, module->input_count);
  outputs = sized(module->outputs, module->output_count);
}

/* A pipe would be waited for, and a device never ends: only files are read. */
static FILE *open_file(const char *path) {
  int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat status;
  if (descriptor < 0 || fstat(descriptor, &status)) die(path, strerror(errno));
  if (!S_ISREG(status.st_mode)) die(path, "is not a regular file");
  FILE *file = fdopen(descriptor, "rb");
  if (!file) die(path, strerror(errno));
  return file;
}

static void read_input(const char *path, const tinsmith_tensor *t, void *data) {
  FILE *file = open_file(path);
  const char *wrong = npy_read(file, t, data);
  if (wrong) die(path, wrong);
  fclose(file);
}

/* ---- names of output files ---- */

/* An output's name as a file's: what is no letter, digit, '.', '-' or '_' becomes '_'. */
static void plain_name(const char *name, char *plain) {
  size_t length = 0;
  for (; name[length] && length < LONGEST_NAME; length++) {
    unsigned char c = (unsigned char)name[length];
    plain[length] = c >= 128 || isalnum(c) || strchr("._-", c) ? (char)c : '_';
  }
  plain[length] = 0;
}

static int is_taken(const char *name, char (*names)[LONGEST_NAME + 16], int count) {
  for (int i = 0; i < count; i++)
    if (!strcmp(names[i], name)) return 1;
  /* A later output that is called just so keeps its name. */
  for (int i = count + 1; i < module->output_count; i++)
    if (!strcmp(module->outputs[i].name, name)) return 1;
  return 0;
}

/* Distinct names for the files of all outputs: the second `a_b` becomes `a_b_2`. */
static char (*file_names(void))[LONGEST_NAME + 16] {
  char(*names)[LONGEST_NAME + 16] = allocate((uint64_t)module->output_count * sizeof *names);
  for (int i = 0; i < module->output_count; i++) {
    char plain[LONGEST_NAME + 1];
    plain_name(module->outputs[i].name, plain);
    snprintf(names[i], sizeof names[i], "%s", plain);
    for (int number = 2; is_taken(names[i], names, i); number++)
      snprintf(names[i], sizeof names[i], "%s_%d", plain, number);
  }
  return names;
}

static void write_outputs(const char *prefix, void **out) {
  char(*names)[LONGEST_NAME + 16] = file_names();
  for (int i = 0; i < module->output_count; i++) {
    char path[4096];
    if (snprintf(path, sizeof path, "%s%s.npy", prefix, names[i]) >= (int)sizeof path)
      die(prefix, "is too long");
    FILE *file = fopen(path, "wb");
    if (!file) die(path, strerror(errno));
    int failed = npy_write(file, &outputs[i], out[i]);
    if (fclose(file) || failed) die(path, "could not be written");
    int renamed = strcmp(names[i], module->outputs[i].name);
    printf(renamed ? "%s (output %s)\n" : "%s\n", path, module->outputs[i].name);
  }
  free(names);
}

/* ---- commands ---- */

static void print_tensors(const char *kind, const tinsmith_tensor *tensors, int count) {
  for (int i = 0; i < count; i++) {
    char shape[NPY_LONGEST_SHAPE];
    npy_shape(&tensors[i], shape);
    printf("%s %s %s %s\n", kind, tensors[i].name, tensors[i].dtype, shape);
  }
}

static int info(void) {
  printf("model %s\ntarget %s\ntinsmith %s\nsteps %d\nweights %llu bytes\narena %llu bytes\n",
         module->name, module->target, module->version, module->step_count,
         (unsigned long long)module->weights_bytes, (unsigned long long)module->arena_bytes);
  for (int i = 0; i < module->dim_count; i++)
    printf("dim %s %lld to %lld\n", module->dims[i].name, (long long)module->dims[i].low,
           (long long)module->dims[i].high);
  print_tensors("input", inputs, module->input_count);
  print_tensors("output", outputs, module->output_count);
  return 0;
}

static void check(int status) {
  if (status) die(module->name, module->last_error());
}

static int run(tinsmith_context *context, void **in, void **out) {
  return module->run(context, dims, (const void *const *)in, out);
}

/* The sizes of the next set of golden vectors, told if there are any. */
static void read_sizes(FILE *file, const char *path) {
  uint64_t count;
  read_exactly(file, &count, 8, path);
  if (count != (uint64_t)module->dim_count) die(path, "does not fit this module");
  read_exactly(file, dims, 8 * count, path);
  for (int i = 0; i < module->dim_count; i++) {
    if (dims[i] < module->dims[i].low || dims[i] > module->dims[i].high)
      die(path, "does not fit this module");
    printf("%s %lld\n", module->dims[i].name, (long long)dims[i]);
  }
  choose_sizes();
}

/* Runs one set of golden vectors and compares; whether it disagrees. */
static int compare(FILE *file, const char *path, tinsmith_context *context, void **in, void **out,
                   double tolerance) {
  uint64_t size;
  for (int i = 0; i < module->input_count; i++) {
    read_exactly(file, &size, 8, path);
    if (size != inputs[i].nbytes) die(path, "does not fit this module");
    read_exactly(file, in[i], size, path);
  }
  check(run(context, in, out));
  int failed = 0;
  for (int i = 0; i < module->output_count; i++) {
    const tinsmith_tensor *t = &outputs[i];
    read_exactly(file, &size, 8, path);
    if (size != t->nbytes) die(path, "does not fit this module");
    void *reference = allocate(size);
    read_exactly(file, reference, size, path);
    double off = deviation(t, out[i], reference);
    int bad = !(off <= tolerance);
    printf("%s: largest deviation %.3g of the range, allowed %.3g: %s\n", t->name, off, tolerance,
           bad ? "FAILED" : "ok");
    failed |= bad;
    free(reference);
  }
  return failed;
}

static int verify(const char *path, tinsmith_context *context, void **in, void **out) {
  FILE *file = open_file(path);
  struct {
    char magic[8];
    uint32_t version, inputs, outputs, sets;
    double tolerance;
  } header;
  read_exactly(file, &header, sizeof header, path);
  if (memcmp(header.magic, "TSGOLDEN", 8) || header.version != (module->dim_count ? 3 : 1) ||
      header.inputs != (uint32_t)module->input_count ||
      header.outputs != (uint32_t)module->output_count)
    die(path, "holds no golden vectors for this module");
  int failed = 0;
  for (uint32_t set = 0; set < (module->dim_count ? header.sets : 1); set++) {
    if (module->dim_count) read_sizes(file, path);
    failed |= compare(file, path, context, in, out, header.tolerance);
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
    check(run(context, in, out));
  for (int i = 0; i < runs; i++) {
    double begin = seconds_now();
    check(run(context, in, out));
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
          "usage: tinsmith-run [--weights FILE] [--threads N] [--dims NAME=N] COMMAND\n"
          "  info                      inputs, outputs, sizes\n"
          "  run [-o PREFIX] FILE...   one .npy or raw file per input; writes PREFIX<output>.npy\n"
          "                            and tells the names (what is special in them becomes _)\n"
          "  bench [RUNS]              latency over RUNS runs (default 100)\n"
          "  verify [FILE]             compare with golden vectors (default: golden.bin beside)\n"
          "--dims tells the size of an open dimension (see `info`); default: the largest\n"
          "exit status: 0 success, 1 the results disagree, 2 an error\n");
  return status;
}

/* A number written in digits alone, from `least` to `most`; anything else is refused. */
static int count(const char *what, const char *text, int least, int most) {
  long long value = 0;
  const char *c = text;
  for (; *c >= '0' && *c <= '9' && value <= most; c++) value = 10 * value + (*c - '0');
  if (c == text || *c || value < least || value > most) {
    fprintf(stderr, "tinsmith-run: %s %s: expected a number from %d to %d\n", what, text, least,
            most);
    exit(2);
  }
  return (int)value;
}

static void find_folder(void) {
  ssize_t length = readlink("/proc/self/exe", folder, sizeof folder - 1);
  folder[length > 0 ? length : 0] = 0;
  char *slash = strrchr(folder, '/');
  if (slash) *slash = 0;
  else strcpy(folder, ".");
}

/* `batch=3` */
static void set_size(const char *text) {
  const char *value = strrchr(text, '=');
  for (int i = 0; value && i < module->dim_count; i++) {
    const tinsmith_dim *dim = &module->dims[i];
    if (strlen(dim->name) != (size_t)(value - text) || strncmp(dim->name, text, strlen(dim->name)))
      continue;
    dims[i] = count(dim->name, value + 1, (int)dim->low, (int)dim->high);
    return;
  }
  die(text, "is no open dimension of this module with its size (see `info`)");
}

int main(int argc, char **argv) {
  module = MODULE_ENTRY();
  find_folder();
  dims = allocate(sizeof *dims * (uint64_t)(module->dim_count + 1));
  for (int i = 0; i < module->dim_count; i++) dims[i] = module->dims[i].high;
  const char *weights = NULL;
  int threads = 0, words = 1, at = 1; /* options stand anywhere; the words left follow argv[0] */
  for (int i = 1; i < argc; i++) {
    const char *option = argv[i];
    if (strncmp(option, "--", 2)) {
      argv[words++] = argv[i];
      continue;
    }
    if (!strcmp(option, "--help")) return usage(0);
    int is_weights = !strcmp(option, "--weights"), is_threads = !strcmp(option, "--threads");
    if (!is_weights && !is_threads && strcmp(option, "--dims"))
      die(option, "no such option; they are --weights, --threads and --dims");
    if (++i == argc) die(option, "give its value after it");
    if (is_weights) weights = argv[i];
    else if (is_threads) threads = count("--threads", argv[i], 0, MOST_THREADS);
    else set_size(argv[i]);
  }
  argc = words;
  if (at >= argc) return usage(2);
  choose_sizes();
  const char *command = argv[at++];
  int given = argc - at, runs = 100;
  if (!strcmp(command, "help")) return usage(0);
  if (!strcmp(command, "info")) return given ? usage(2) : info();
  int is_verify = !strcmp(command, "verify"), is_bench = !strcmp(command, "bench");
  if (!is_verify && !is_bench && strcmp(command, "run")) return usage(2);
  if ((is_verify || is_bench) && given > 1) return usage(2);
  if (is_bench && given) runs = count("bench", argv[at], 1, MOST_RUNS);
  check(module->open(weights ? weights : beside("weights.bin")));
  check(module->set_threads(threads));
  tinsmith_context *context = module->create();
  if (!context) die(module->name, module->last_error());
  void **in = allocate(sizeof(void *) * (uint64_t)(module->input_count + 1));
  void **out = allocate(sizeof(void *) * (uint64_t)(module->output_count + 1));
  for (int i = 0; i < module->input_count; i++) in[i] = allocate(module->inputs[i].nbytes);
  for (int i = 0; i < module->output_count; i++) out[i] = allocate(module->outputs[i].nbytes);
  int status = 0;
  if (is_verify) {
    status = verify(given ? argv[at] : beside("golden.bin"), context, in, out);
  } else if (is_bench) {
    status = bench(context, in, out, runs);
  } else {
    const char *prefix = "";
    if (given > 1 && !strcmp(argv[at], "-o")) {
      prefix = argv[at + 1];
      at += 2;
    }
    if (argc - at != module->input_count) die("run", "give one file per input (see `info`)");
    for (int i = 0; i < module->input_count; i++)
      read_input(argv[at + i], &inputs[i], in[i]);
    check(run(context, in, out));
    write_outputs(prefix, out);
  }
  module->destroy(context);
  module->close();
  return status;
}
