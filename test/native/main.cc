// Runs every native test; exits with 1 at the first failed check.
#include "expect.h"

int main() {
  test_thread_pool();
  std::puts("thread pool: ok");
  test_kernels();
  std::puts("kernels: ok");
  return 0;
}
