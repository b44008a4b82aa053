/*
 * maid-enter: what must happen in a user namespace other than the daemon's, in a process that has
 * just one thread and is gone a millisecond later.
 *
 *   maid-enter pin SOCKET
 *	A new user namespace with its own binfmt_misc. Says "x" on SOCKET when it is made, waits for a
 *	byte (the id maps are written from outside), mounts binfmt_misc detached, and sends the mount
 *	and the namespace as descriptors.
 *   maid-enter mount USERNS SOCKET
 *	Mounts the binfmt_misc of the namespace USERNS (a descriptor) detached, and sends the mount.
 *   maid-enter exec USERNS ROOT UID REPORT ARGV0 FILE [ARG...]
 *	Joins USERNS (-1: stays), chroots into the directory ROOT (a descriptor), takes on UID and an
 *	equal GID, and executes FILE with ARGV0 and an empty environment, in a session and process
 *	group of its own. If a call fails, its name and errno go to the descriptor REPORT, which is
 *	closed by a successful execve.
 *
 * Exit status 127 when something failed; the reason is in errno's words on stderr, or in REPORT.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_fsopen
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif
#define FSOPEN_CLOEXEC 1
#define FSCONFIG_CMD_CREATE 6
#define FSMOUNT_CLOEXEC 1

static int report = -1;

static void fail(const char *what)
{
	int number = errno;
	char line[128];
	int length = snprintf(line, sizeof(line), "%d %s", number, what);

	if (length > (int)sizeof(line) - 1)
		length = sizeof(line) - 1;
	if (report >= 0) {
		if (write(report, line, length) < 0)
			_exit(126);
	} else {
		dprintf(2, "maid-enter: %s: %s\n", what, strerror(number));
	}
	_exit(127);
}

static int number(const char *text)
{
	char *end;
	long value = strtol(text, &end, 10);

	if (!*text || *end) {
		errno = EINVAL;
		fail(text);
	}
	return (int)value;
}

/* The calling user namespace's binfmt_misc as a detached mount. */
static int table(void)
{
	int context, mount;

	context = syscall(SYS_fsopen, "binfmt_misc", FSOPEN_CLOEXEC);
	if (context < 0)
		fail("fsopen binfmt_misc");
	if (syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		fail("fsconfig binfmt_misc");
	mount = syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
	if (mount < 0)
		fail("fsmount binfmt_misc");
	return mount;
}

static void send_descriptors(int socket, const int *descriptors, size_t count)
{
	char control[CMSG_SPACE(2 * sizeof(int))] = { 0 };
	struct iovec data = { .iov_base = "m", .iov_len = 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = CMSG_SPACE(count * sizeof(int)) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(header), descriptors, count * sizeof(int));
	if (sendmsg(socket, &message, 0) != 1)
		fail("sendmsg");
}

static int pin(int socket)
{
	char byte = 'x';
	int both[2];

	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
		fail("unshare user namespace");
	if (write(socket, &byte, 1) != 1 || read(socket, &byte, 1) != 1)
		fail("waiting for the id maps");
	both[0] = table();
	both[1] = open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC);
	if (both[1] < 0)
		fail("/proc/self/ns/user");
	send_descriptors(socket, both, 2);
	return 0;
}

static int mount_again(int userns, int socket)
{
	int mount;

	if (setns(userns, CLONE_NEWUSER) < 0)
		fail("setns user namespace");
	if (unshare(CLONE_NEWNS) < 0)
		fail("unshare mount namespace");
	mount = table();
	send_descriptors(socket, &mount, 1);
	return 0;
}

static int execute(int userns, int root, int uid, char **argv)
{
	struct rlimit none = { 0, 0 };
	char *environment[] = { NULL };

	if (fcntl(report, F_SETFD, FD_CLOEXEC) < 0 || fcntl(root, F_SETFD, FD_CLOEXEC) < 0)
		fail("fcntl");
	if (userns >= 0 && setns(userns, CLONE_NEWUSER) < 0)
		fail("setns user namespace");
	if (userns >= 0)
		close(userns);
	if (fchdir(root) < 0)
		fail("fchdir");
	if (chroot(".") < 0)
		fail("chroot");
	setrlimit(RLIMIT_CORE, &none);
	setsid();
	signal(SIGPIPE, SIG_DFL);	/* Python ignores it, and what is ignored is inherited */
	if (uid != 0) {
		/* One mapped id allows no setgroups: the groups are then dropped by the mapping itself. */
		if (setgroups(0, NULL) < 0 && errno != EPERM)
			fail("setgroups");
		if (setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
			fail("setresuid");
	}
	/* A probe does not outlive the daemon. After the change of user, which takes this back. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
		fail("prctl");
	/* argv is ARGV0 FILE ARG...: shifted by one it is FILE's own vector once ARGV0 is put in place. */
	char *file = argv[1];

	argv[1] = argv[0];
	execve(file, argv + 1, environment);
	fail("execve");
	return 127;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "pin"))
		return pin(number(argv[2]));
	if (argc == 4 && !strcmp(argv[1], "mount"))
		return mount_again(number(argv[2]), number(argv[3]));
	if (argc >= 8 && !strcmp(argv[1], "exec")) {
		report = number(argv[5]);
		return execute(number(argv[2]), number(argv[3]), number(argv[4]), argv + 6);
	}
	dprintf(2, "usage: maid-enter pin SOCKET | mount USERNS SOCKET | exec USERNS ROOT UID REPORT ARGV0 FILE [ARG...]\n");
	return 2;
}
