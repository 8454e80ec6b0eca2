/* The tight loops of the bench: one job a run, which prints "NANOSECONDS RESULT".
 *
 * CLIENTS processes share a job (not threads: page faults of threads wait on one lock of the address space). They
 * open their files, meet at a barrier, and the time runs from there until the last one returns. The start and the end
 * of processes are not in it.
 *
 * A data file consists of pages of 4096 bytes: word 0 is the page's number, word 1 its generation, all others are
 * FILLER. A reader therefore knows whether it got the page it asked for, and a written file needs no copy to be
 * checked against. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, BLOCK = 1 << 20, MOST_CLIENTS = 64 };
#define FILLER 0x9e3779b97f4a7c15ull

static const char *path; /* a file, a directory, or a list of paths */
static uint64_t size, count, clients, seed, generation, sync_too; /* count: operations of all clients together */
static uint64_t client; /* the number of this process */
static char **names;    /* of a list */

static struct {
    uint64_t ready, begun[MOST_CLIENTS], ended[MOST_CLIENTS], result[MOST_CLIENTS];
} *shared;

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void wrong(const char *what, uint64_t page) {
    fprintf(stderr, "wrong bytes: %s at page %llu\n", what, (unsigned long long)page);
    exit(3);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* Waits for all clients. */
static void begin(void) {
    __atomic_add_fetch(&shared->ready, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&shared->ready, __ATOMIC_SEQ_CST) < clients) sched_yield();
    shared->begun[client] = now();
}

/* The share of N things that belongs to this client: from first(n) to last(n). */
static uint64_t first(uint64_t n) { return n * client / clients; }
static uint64_t last(uint64_t n) { return n * (client + 1) / clients; }

static int open_path(const char *name, int flags) {
    int fd = open(name, flags, 0644);
    if (fd < 0) fail(name);
    return fd;
}
static int open_shared(int flags) { return open_path(path, flags); }

/* The file of this client: PATH.CLIENT where several of them write. */
static int open_own(int flags) {
    char own[PAGE];
    snprintf(own, sizeof own, clients == 1 ? "%s" : "%s.%d", path, (int)client);
    return open_path(own, flags);
}

static uint64_t pages_of(int fd) {
    struct stat s;
    if (fstat(fd, &s)) fail("fstat");
    return (uint64_t)s.st_size / PAGE;
}

static uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += FILLER);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static uint64_t *buffer(uint64_t bytes) {
    uint64_t *words = aligned_alloc(PAGE, bytes);
    if (!words) fail("aligned_alloc");
    for (uint64_t i = 0; i < bytes / 8; i++) words[i] = i % WORDS == 1 ? generation : FILLER;
    return words;
}

/* Reads the share of this client of one file, or a file of its own. Every page must be complete and of this generation;
 * with a count, only the pages that write_at_random wrote with this seed are, and the others of generation 0. */
static uint64_t read_pages(int own) {
    int fd = own ? open_own(O_RDONLY) : open_shared(O_RDONLY);
    uint64_t pages = pages_of(fd), state = seed + client, *words = buffer(BLOCK);
    uint64_t start = own ? 0 : first(pages), end = own ? pages : last(pages);
    char *written = calloc(pages + 1, 1);
    if (!written) fail("calloc");
    if (size && size / clients != pages * PAGE) wrong("size", pages);
    for (uint64_t i = 0; i < count / clients; i++) written[next_random(&state) % pages] = 1;
    begin();
    for (uint64_t page = start; page < end;) {
        uint64_t want = end - page < BLOCK / PAGE ? end - page : BLOCK / PAGE, *at = words;
        ssize_t got = pread(fd, words, want * PAGE, (off_t)(page * PAGE));
        if (got < PAGE) fail("pread");
        for (uint64_t stop = page + (uint64_t)got / PAGE; page < stop; page++, at += WORDS)
            if (at[0] != page || at[1] != (count && !written[page] ? 0 : generation) || at[2] != FILLER ||
                at[WORDS - 1] != FILLER)
                wrong("sequential read", page);
    }
    return (end - start) * PAGE;
}
static uint64_t read_shared(void) { return read_pages(0); }
static uint64_t verify(void) { return read_pages(1); }

/* Pages at random: of the file that all share for reading, of each client's own for writing. */
static uint64_t at_random(int writing) {
    int fd = writing ? open_own(O_WRONLY) : open_shared(O_RDONLY);
    uint64_t pages = pages_of(fd), state = seed + client, *words = buffer(PAGE), n = count / clients;
    if (!writing) posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    begin();
    for (uint64_t i = 0; i < n; i++) {
        uint64_t page = next_random(&state) % pages;
        off_t at = (off_t)(page * PAGE);
        if (writing) words[0] = page;
        if ((writing ? pwrite(fd, words, PAGE, at) : pread(fd, words, PAGE, at)) != PAGE) fail("random page");
        if (words[0] != page) wrong("random read", page);
    }
    return n * PAGE;
}
static uint64_t read_at_random(void) { return at_random(0); }
static uint64_t write_at_random(void) { return at_random(1); }

static uint64_t write_sequentially(int flags) {
    int fd = open_own(O_WRONLY | flags);
    uint64_t own = size / clients, *words = buffer(BLOCK);
    begin();
    for (uint64_t at = 0; at < own; at += BLOCK) {
        uint64_t bytes = own - at < BLOCK ? own - at : BLOCK;
        for (uint64_t i = 0; i < bytes / PAGE; i++) words[i * WORDS] = at / PAGE + i;
        if (pwrite(fd, words, bytes, (off_t)at) != (ssize_t)bytes) fail("pwrite");
    }
    if (sync_too && fsync(fd)) fail("fsync");
    return own;
}
static uint64_t write_new(void) { return write_sequentially(O_CREAT | O_EXCL); }
static uint64_t write_over(void) { return write_sequentially(0); }

/* Reads or writes the share of this client of a mapped file. */
static uint64_t map_pages(int writing) {
    int fd = open_shared(writing ? O_RDWR : O_RDONLY);
    uint64_t pages = pages_of(fd), sum = 0, expected = 0, *source = buffer(PAGE);
    begin();
    uint64_t *words = mmap(NULL, pages * PAGE, writing ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (words == MAP_FAILED) fail("mmap");
    for (uint64_t page = first(pages); page < last(pages); page++) {
        source[0] = page;
        expected += page + generation + (WORDS - 2) * FILLER;
        if (writing) memcpy(words + page * WORDS, source, PAGE);
        else for (uint64_t i = 0; i < WORDS; i++) sum += words[page * WORDS + i];
    }
    if (!writing && sum != expected) wrong("mapped read", first(pages));
    return (last(pages) - first(pages)) * PAGE;
}
static uint64_t read_mapping(void) { return map_pages(0); }
static uint64_t write_mapping(void) { return map_pages(1); }

/* Counts the entries of a directory; with `deep`, those below it as well, each after a stat. */
static uint64_t list_at(int parent, const char *name, int deep) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY);
    uint64_t n = 0;
    struct dirent *entry;
    struct stat s;
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (!directory) fail(name);
    while ((errno = 0, entry = readdir(directory))) {
        if (entry->d_name[0] == '.') continue;
        n++;
        if (deep && fstatat(fd, entry->d_name, &s, AT_SYMLINK_NOFOLLOW)) fail(entry->d_name);
        if (deep && S_ISDIR(s.st_mode)) n += list_at(fd, entry->d_name, deep);
    }
    if (errno) fail("readdir");
    closedir(directory);
    return n;
}
static uint64_t list(void) { return begin(), list_at(AT_FDCWD, path, 0); }
static uint64_t walk(void) { return begin(), list_at(AT_FDCWD, path, 1); }

/* -- one call a name --------------------------------------------------------------------------------------- */

static int open_one(const char *name) { return close(open_path(name, O_RDONLY)); }
static int create_one(const char *name) { return close(open_path(name, O_CREAT | O_EXCL | O_WRONLY)); }
static int remove_one(const char *name) { return unlink(name); }
static int chmod_one(const char *name) { return chmod(name, 0600); }
static int stat_one(const char *name) {
    struct stat s;
    return lstat(name, &s);
}

/* One byte at offset SIZE. verify does not look at the byte. */
static int poke_one(const char *name) {
    int fd = open_path(name, O_WRONLY);
    return pwrite(fd, "x", 1, (off_t)(size + 3 * sizeof(uint64_t))) != 1 || close(fd);
}

/* To NAME.moved as mv(1) does it, which is started only where it must copy. */
static int move_one(const char *name) {
    char to[PAGE], command[3 * PAGE];
    snprintf(to, sizeof to, "%s.moved", name);
    snprintf(command, sizeof command, "mv '%s' '%s'", name, to);
    return rename(name, to) && (errno != EXDEV || system(command));
}

static const struct job {
    const char *name;
    uint64_t (*run)(void);
    enum { PATH, LISTED, MADE } of; /* the names of `one`: PATH itself, those in the list PATH, or COUNT new ones */
    int (*one)(const char *);
} JOBS[] = {
    {"read", read_shared},   {"randread", read_at_random},   {"mmapread", read_mapping}, {"write", write_new},
    {"overwrite", write_over},     {"randwrite", write_at_random}, {"mmapwrite", write_mapping}, {"verify", verify},
    {"readdir", list},             {"walk", walk},
    {"open", NULL, LISTED, open_one}, {"stat", NULL, LISTED, stat_one}, {"create", NULL, MADE, create_one},
    {"unlink", NULL, MADE, remove_one}, {"poke", NULL, PATH, poke_one}, {"chmod", NULL, PATH, chmod_one},
    {"remove", NULL, PATH, remove_one}, {"move", NULL, PATH, move_one},
};

/* -- starting --------------------------------------------------------------------------------------------- */

static void read_names(void) {
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;
    ssize_t got;
    if (!file) fail(path);
    for (; (got = getline(&line, &(size_t){0}, file)) >= 0; line = NULL) {
        line[got - 1] = 0;
        if (count == room) names = realloc(names, (room = room * 2 + 1024) * sizeof *names);
        names[count++] = line;
    }
    fclose(file);
}

/* Makes the call of the job for this client's share of the names; the result is their number. */
static uint64_t call_each(const struct job *job) {
    char made[64];
    uint64_t n = job->of == PATH ? 1 : job->of == MADE ? count / clients : last(count) - first(count);
    begin();
    for (uint64_t i = 0; i < n; i++) {
        const char *name = job->of == PATH ? path : job->of == LISTED ? names[first(count) + i] : made;
        if (job->of == MADE) sprintf(made, "c%02d-%06llu", (int)client, (unsigned long long)i);
        if (job->one(name)) fail(name);
    }
    return n;
}

/* Starts the clients and waits for them. Where one fails, the others end with this process. */
static int run(const struct job *job) {
    uint64_t begun = UINT64_MAX, ended = 0, result = 0;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) fail("mmap");
    for (client = 0; client < clients; client++) {
        pid_t pid = fork();
        if (pid < 0) fail("fork");
        if (pid > 0) continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        shared->result[client] = job->run ? job->run() : call_each(job);
        shared->ended[client] = now();
        _exit(0);
    }
    for (uint64_t i = 0; i < clients; i++) {
        int status;
        if (wait(&status) < 0) fail("wait");
        if (WIFSIGNALED(status)) fprintf(stderr, "a client was killed by signal %d\n", WTERMSIG(status));
        if (status) return 1;
    }
    for (uint64_t i = 0; i < clients; i++) {
        if (shared->begun[i] < begun) begun = shared->begun[i];
        if (shared->ended[i] > ended) ended = shared->ended[i];
        result += shared->result[i];
    }
    printf("%llu %llu\n", (unsigned long long)(ended - begun), (unsigned long long)result);
    return 0;
}

/* probe JOB PATH SIZE COUNT CLIENTS SEED GENERATION SYNC */
int main(int argc, char **argv) {
    uint64_t *numbers[] = {&size, &count, &clients, &seed, &generation, &sync_too};
    if (argc != 9) return 2;
    path = argv[2];
    for (int i = 0; i < 6; i++) *numbers[i] = strtoull(argv[3 + i], NULL, 10);
    for (size_t i = 0; i < sizeof JOBS / sizeof *JOBS; i++) {
        if (strcmp(argv[1], JOBS[i].name)) continue;
        if (JOBS[i].of == LISTED) read_names();
        return run(&JOBS[i]);
    }
    return 2;
}
