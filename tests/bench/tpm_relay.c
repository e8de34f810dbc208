// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A pty whose other end is a swtpm's unix socket, for QEMU's spapr-tpm-proxy, which takes a
 * character device only: tpm_relay SOCKET. Prints the pty's name; ends with its stdin.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

static void must(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

static void pass_on(int from, int to)
{
	char data[4096];
	ssize_t size = read(from, data, sizeof(data)), done = 0, count;

	must(size > 0 ? 0 : -1, "read");
	for (; done < size; done += count) {
		count = write(to, data + done, size - done);
		must(count > 0 ? 0 : -1, "write");
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct pollfd fds[3] = { { .events = POLLIN }, { .events = POLLIN },
				 { .fd = 0, .events = POLLIN } };
	struct termios raw;
	int master, slave, tpm;

	if (argc != 2 || strlen(argv[1]) >= sizeof(address.sun_path)) {
		fprintf(stderr, "usage: %s SOCKET\n", argv[0]);
		return 2;
	}
	strcpy(address.sun_path, argv[1]);
	must(tpm = socket(AF_UNIX, SOCK_STREAM, 0), "socket");
	must(connect(tpm, (struct sockaddr *)&address, sizeof(address)), "connect");
	must(master = posix_openpt(O_RDWR | O_NOCTTY), "posix_openpt");
	must(grantpt(master), "grantpt");
	must(unlockpt(master), "unlockpt");
	/* Held open: the pty must not hang up between two users. */
	must(slave = open(ptsname(master), O_RDWR | O_NOCTTY), "open");
	must(tcgetattr(slave, &raw), "tcgetattr");
	cfmakeraw(&raw);
	must(tcsetattr(slave, TCSANOW, &raw), "tcsetattr");
	printf("%s\n", ptsname(master));
	fflush(stdout);
	fds[0].fd = master;
	fds[1].fd = tpm;
	for (;;) {
		must(poll(fds, 3, -1), "poll");
		if (fds[0].revents)
			pass_on(master, tpm);
		if (fds[1].revents)
			pass_on(tpm, master);
		if (fds[2].revents)
			return 0;
	}
}
