// SPDX-License-Identifier: Apache-2.0
// An intruder's process to be found: another's name, no file, a writable and executable page, a
// listener, a datagram socket, a connection, an open file that is deleted.
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

static int bound(int kind, int port) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
  int s = socket(AF_INET, kind, 0), on = 1;
  setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(s, (struct sockaddr *)&at, sizeof at)) perror("bind");
  return s;
}

int main(int count, char **given) {
  if (count != 2) return 2;
  prctl(PR_SET_NAME, "kdevtmpfsi");
  char *page = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(page, 0x90, 4096);
  strcpy(page + 16, "executable-page-mark-77c3");
  int loot = open(given[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
  dprintf(loot, "deleted-open-file-mark-9b20\n");
  unlink(given[1]);
  unlink(given[0]);
  int listener = bound(SOCK_STREAM, 4444);
  listen(listener, 16);
  bound(SOCK_DGRAM, 5355);
  struct sockaddr_in self = {.sin_family = AF_INET, .sin_port = htons(4444)};
  self.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int out = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(out, (struct sockaddr *)&self, sizeof self)) perror("connect");
  accept(listener, 0, 0);
  printf("ready\n");
  fflush(stdout);
  for (;;) {
    int caller = accept(listener, 0, 0);
    if (caller < 0) { sleep(1); continue; }
    dprintf(caller, "practice\n");
    close(caller);
  }
}
