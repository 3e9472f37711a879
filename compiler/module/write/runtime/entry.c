/* The entry point that every shared library has, whatever its model is called. */
#include "tinsmith.h"

const tinsmith_module *MODULE_ENTRY(void);

__attribute__((visibility("default"))) const tinsmith_module *tinsmith_get_module(void) {
  return MODULE_ENTRY();
}
