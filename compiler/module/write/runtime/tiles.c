/* AMX tiles: Linux lets a process use them only after it has asked for them. */
#include <sys/syscall.h>
#include <unistd.h>

enum { REQUEST_PERMISSION = 0x1023 /* ARCH_REQ_XCOMP_PERM */, TILE_DATA = 18 };

/* Holds for all threads of the process; asking again changes nothing. */
static int machine_refuses(void) {
  if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0) return 0;
  return fail("this module needs AMX tiles, which this CPU or its system lacks",
              "compile it with another --target");
}
