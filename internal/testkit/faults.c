//go:build ignore

// A library for LD_PRELOAD: SQLite's calls into the C library fail, tear, lie,
// crawl, or end the process, as the test that mapped the same file says.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

// Must be as in faults.go.
enum { SYNC = 0, WRITE = 1, TRUNCATE = 2, CALLS = 3 };
enum { NONE, KILL_BEFORE, KILL_AFTER, TEAR, FAIL, LIE, SLOW };

struct control {
	_Atomic int32_t call;   // which call is meant
	_Atomic int32_t action; // NONE: nothing is done; set last
	_Atomic int32_t skip;   // calls that pass before
	_Atomic int32_t err;    // of FAIL
	_Atomic int32_t times;  // how many calls it is done to, then no more; below 0: to all
	_Atomic int32_t millis; // of SLOW
	_Atomic int32_t done;   // how many it was done to
	_Atomic int32_t seen[CALLS];
};

static struct control *control;

__attribute__((constructor)) static void map_control(void) {
	const char *path = getenv("SIDECAR_TEST_FAULTS");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	void *at = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (at != MAP_FAILED)
		control = at;
}

// action counts a call and says what is to be done to it.
static int action(int call) {
	if (!control)
		return NONE;
	atomic_fetch_add(&control->seen[call], 1);
	int what = atomic_load(&control->action);
	if (what == NONE || atomic_load(&control->call) != call || atomic_fetch_sub(&control->skip, 1) > 0)
		return NONE;
	if (atomic_load(&control->times) == 0)
		return NONE;
	if (atomic_load(&control->times) > 0)
		atomic_fetch_sub(&control->times, 1);
	atomic_fetch_add(&control->done, 1);
	if (what == KILL_BEFORE)
		kill(getpid(), SIGKILL), pause();
	if (what == SLOW) {
		int ms = atomic_load(&control->millis);
		struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
		nanosleep(&t, NULL);
	}
	return what;
}

static int fail(void) {
	errno = atomic_load(&control->err);
	return -1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void die(void) { kill(getpid(), SIGKILL), pause(); }

#define SYNC_CALL(name)                                                                                                \
	int name(int fd) {                                                                                             \
		int what = action(SYNC);                                                                               \
		if (what == FAIL)                                                                                      \
			return fail();                                                                                 \
		if (what == LIE)                                                                                       \
			return 0;                                                                                      \
		int n = REAL(name)(fd);                                                                                \
		if (what == KILL_AFTER)                                                                                \
			die();                                                                                         \
		return n;                                                                                              \
	}
SYNC_CALL(fsync)
SYNC_CALL(fdatasync)

#define WRITE_CALL(name, off)                                                                                          \
	ssize_t name(int fd, const void *from, size_t count, off at) {                                                \
		int what = action(WRITE);                                                                              \
		if (what == FAIL)                                                                                      \
			return fail();                                                                                 \
		if (what == TEAR)                                                                                      \
			(void)!REAL(name)(fd, from, count / 2, at), die();                                             \
		ssize_t n = REAL(name)(fd, from, count, at);                                                           \
		if (what == KILL_AFTER)                                                                                \
			die();                                                                                         \
		return n;                                                                                              \
	}
WRITE_CALL(pwrite, off_t)
WRITE_CALL(pwrite64, off64_t)

#define TRUNCATE_CALL(name, off)                                                                                       \
	int name(int fd, off length) {                                                                                 \
		int what = action(TRUNCATE);                                                                           \
		if (what == FAIL)                                                                                      \
			return fail();                                                                                 \
		int n = REAL(name)(fd, length);                                                                        \
		if (what == KILL_AFTER)                                                                                \
			die();                                                                                         \
		return n;                                                                                              \
	}
TRUNCATE_CALL(ftruncate, off_t)
TRUNCATE_CALL(ftruncate64, off64_t)
