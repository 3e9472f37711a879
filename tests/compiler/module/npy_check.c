/* What npy.h makes of files, to be built with sanitizers and compared with numpy:
 * npy_check FILES, which holds, for each, its size (uint32) and its content.
 * Prints `1 SUM` for one that is read, SUM being that of its bytes, and `0 REASON` for others.
 */
#define _GNU_SOURCE
#include "npy.h"

#include <stdlib.h>

static const int64_t shape[] = {2, 3};
static const tinsmith_tensor tensor = {"x", "float32", shape, 2, 0, 24};

int main(int argc, char **argv) {
  FILE *files = argc == 2 ? fopen(argv[1], "rb") : NULL;
  if (!files) return 2;
  uint32_t size;
  while (fread(&size, 4, 1, files) == 1) {
    unsigned char *content = malloc(size ? size : 1); /* of just this size: reading on is found */
    if (fread(content, 1, size, files) != size) return 2;
    FILE *file = fmemopen(content, size ? size : 1, "rb");
    unsigned char *data = malloc(tensor.nbytes);
    const char *wrong = npy_read(file, &tensor, data);
    unsigned sum = 0;
    for (uint64_t i = 0; !wrong && i < tensor.nbytes; i++) sum = sum * 31 + data[i];
    if (wrong) printf("0 %s\n", wrong);
    else printf("1 %u\n", sum);
    fclose(file);
    free(data);
    free(content);
  }
  return 0;
}
