/* The tight loops of the bench: one job a run, which prints "NANOSECONDS RESULT".
 *
 * Every job is shared by CLIENTS processes (not threads: page faults of threads wait on one lock of the address
 * space). They open what they need, meet at a barrier, and the time runs from there until the last is through;
 * starting and ending processes is not in it.
 *
 * A data file is made of pages of 4096 bytes: word 0 is the page's number, word 1 its generation, the others are a
 * constant. So a reader knows at once whether it got the page it asked for, and a file that was written can be
 * checked without keeping a copy. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, MOST_CLIENTS = 64 };
#define FILLER 0x9e3779b97f4a7c15ull

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void wrong(const char *what, uint64_t where) {
    fprintf(stderr, "wrong bytes: %s at page %llu\n", what, (unsigned long long)where);
    exit(3);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* What a job needs, from the command line. */
struct job {
    const char *path;   /* a file, a directory, or a list of paths */
    uint64_t size;      /* bytes of the file, or bytes a request */
    uint64_t count;     /* operations of all clients together */
    int clients;
    uint64_t seed, generation;
    int sync;
    char **names;       /* of a list */
};

struct shared {
    pthread_barrier_t barrier;
    uint64_t begun[MOST_CLIENTS], ended[MOST_CLIENTS], result[MOST_CLIENTS];
};
static struct shared *shared;

static void begin(int client) {
    pthread_barrier_wait(&shared->barrier);
    shared->begun[client] = now();
}
static void end(int client, uint64_t result) {
    shared->ended[client] = now();
    shared->result[client] = result;
}

static uint64_t size_of(int fd) {
    struct stat s;
    if (fstat(fd, &s)) fail("fstat");
    return (uint64_t)s.st_size;
}

/* The file of one client: its own where several of them write. */
static int open_own(const struct job *job, int client, int flags) {
    char path[PAGE];
    if (job->clients == 1) snprintf(path, sizeof path, "%s", job->path);
    else snprintf(path, sizeof path, "%s.%d", job->path, client);
    int fd = open(path, flags, 0644);
    if (fd < 0) fail(path);
    return fd;
}

static int open_same(const struct job *job, int flags) {
    int fd = open(job->path, flags);
    if (fd < 0) fail(job->path);
    return fd;
}

/* The part of a range of N that is this client's. */
static uint64_t from(const struct job *job, uint64_t n, int client) { return n * (uint64_t)client / (uint64_t)job->clients; }

static uint64_t next(uint64_t *state) {
    uint64_t z = (*state += FILLER);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static uint64_t *buffer(uint64_t bytes, uint64_t generation) {
    uint64_t *words = aligned_alloc(PAGE, bytes);
    if (!words) fail("aligned_alloc");
    for (uint64_t i = 0; i < bytes / 8; i++) words[i] = i % WORDS == 1 ? generation : FILLER;
    return words;
}

/* -- data ------------------------------------------------------------------------------------------------- */

static void read_sequentially(const struct job *job, int client) {
    int fd = open_same(job, O_RDONLY);
    uint64_t pages = size_of(fd) / PAGE;
    uint64_t at = from(job, pages, client) * PAGE, to = from(job, pages, client + 1) * PAGE;
    uint64_t *words = buffer(job->size, 0), total = 0;
    begin(client);
    while (at < to) {
        uint64_t want = to - at < job->size ? to - at : job->size;
        ssize_t got = pread(fd, words, want, (off_t)at);
        if (got <= 0) fail("pread");
        for (uint64_t page = 0; page < (uint64_t)got / PAGE; page++)
            if (words[page * WORDS] != at / PAGE + page) wrong("sequential read", at / PAGE + page);
        at += (uint64_t)got;
        total += (uint64_t)got;
    }
    end(client, total);
}

static void read_at_random(const struct job *job, int client) {
    int fd = open_same(job, O_RDONLY);
    uint64_t pages = size_of(fd) / PAGE, state = job->seed + (uint64_t)client, *words = buffer(PAGE, 0);
    uint64_t n = job->count / (uint64_t)job->clients;
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    begin(client);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t page = next(&state) % pages;
        if (pread(fd, words, PAGE, (off_t)(page * PAGE)) != PAGE) fail("pread");
        if (words[0] != page) wrong("random read", page);
    }
    end(client, n * PAGE);
}

static void write_sequentially(const struct job *job, int client, int flags) {
    int fd = open_own(job, client, O_WRONLY | flags);
    uint64_t block = 1 << 20, size = job->size / (uint64_t)job->clients, *words = buffer(block, job->generation);
    begin(client);
    for (uint64_t at = 0; at < size; at += block) {
        uint64_t bytes = size - at < block ? size - at : block;
        for (uint64_t page = 0; page < bytes / PAGE; page++) words[page * WORDS] = at / PAGE + page;
        if (pwrite(fd, words, bytes, (off_t)at) != (ssize_t)bytes) fail("pwrite");
    }
    if (job->sync && fsync(fd)) fail("fsync");
    end(client, size);
    if (close(fd)) fail("close");
}
static void write_new(const struct job *job, int client) { write_sequentially(job, client, O_CREAT | O_EXCL); }
static void write_over(const struct job *job, int client) { write_sequentially(job, client, 0); }

static void write_at_random(const struct job *job, int client) {
    int fd = open_own(job, client, O_WRONLY);
    uint64_t pages = size_of(fd) / PAGE, state = job->seed + (uint64_t)client, *words = buffer(PAGE, job->generation);
    uint64_t n = job->count / (uint64_t)job->clients;
    begin(client);
    for (uint64_t i = 0; i < n; i++) {
        words[0] = next(&state) % pages;
        if (pwrite(fd, words, PAGE, (off_t)(words[0] * PAGE)) != PAGE) fail("pwrite");
    }
    if (job->sync && fsync(fd)) fail("fsync");
    end(client, n * PAGE);
    if (close(fd)) fail("close");
}

static void read_mapping(const struct job *job, int client) {
    int fd = open_same(job, O_RDONLY);
    uint64_t size = size_of(fd), pages = size / PAGE, sum = 0;
    begin(client);
    uint64_t *words = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (words == MAP_FAILED) fail("mmap");
    for (uint64_t i = from(job, pages, client) * WORDS; i < from(job, pages, client + 1) * WORDS; i++) sum += words[i];
    end(client, sum);
}

static void write_mapping(const struct job *job, int client) {
    int fd = open_same(job, O_RDWR);
    uint64_t size = size_of(fd), pages = size / PAGE, *source = buffer(PAGE, job->generation);
    begin(client);
    uint64_t *words = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (words == MAP_FAILED) fail("mmap");
    for (uint64_t page = from(job, pages, client); page < from(job, pages, client + 1); page++) {
        source[0] = page;
        memcpy(words + page * WORDS, source, PAGE);
    }
    end(client, (from(job, pages, client + 1) - from(job, pages, client)) * PAGE);
}

/* Every page of the file is whole, and of this generation; with a count, those that write_at_random wrote with this
 * seed are of it, and the others of generation 0. */
static void verify(const struct job *job, int client) {
    int fd = open_own(job, client, O_RDONLY);
    uint64_t pages = size_of(fd) / PAGE, state = job->seed + (uint64_t)client, *words = buffer(PAGE, 0);
    uint64_t expected_size = job->size / (uint64_t)job->clients;
    char *written = calloc(pages + 1, 1);
    if (!written) fail("calloc");
    if (expected_size && expected_size != pages * PAGE) wrong("size", pages);
    for (uint64_t i = 0; i < job->count / (uint64_t)job->clients; i++) written[next(&state) % pages] = 1;
    begin(client);
    for (uint64_t page = 0; page < pages; page++) {
        if (pread(fd, words, PAGE, (off_t)(page * PAGE)) != PAGE) fail("pread");
        uint64_t generation = job->count && !written[page] ? 0 : job->generation;
        if (words[0] != page || words[1] != generation || words[2] != FILLER || words[WORDS - 1] != FILLER)
            wrong("written file", page);
    }
    end(client, pages * PAGE);
}

/* -- names ------------------------------------------------------------------------------------------------ */

static void open_close(const struct job *job, int client) {
    begin(client);
    uint64_t first = from(job, job->count, client), last = from(job, job->count, client + 1);
    for (uint64_t i = first; i < last; i++) {
        int fd = open(job->names[i], O_RDONLY);
        if (fd < 0) fail(job->names[i]);
        if (close(fd)) fail("close");
    }
    end(client, last - first);
}

static void stat_all(const struct job *job, int client) {
    struct stat s;
    begin(client);
    uint64_t first = from(job, job->count, client), last = from(job, job->count, client + 1);
    for (uint64_t i = first; i < last; i++)
        if (lstat(job->names[i], &s)) fail(job->names[i]);
    end(client, last - first);
}

/* The names that create_all and remove_all share. */
static void name_of(char *name, int client, uint64_t i) { sprintf(name, "c%02d-%06llu", client, (unsigned long long)i); }

static void create_all(const struct job *job, int client) {
    char name[64];
    uint64_t n = job->count / (uint64_t)job->clients;
    begin(client);
    for (uint64_t i = 0; i < n; i++) {
        name_of(name, client, i);
        int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
        if (fd < 0) fail(name);
        if (close(fd)) fail("close");
    }
    end(client, n);
}

static void remove_all(const struct job *job, int client) {
    char name[64];
    uint64_t n = job->count / (uint64_t)job->clients;
    begin(client);
    for (uint64_t i = 0; i < n; i++) {
        name_of(name, client, i);
        if (unlink(name)) fail(name);
    }
    end(client, n);
}

static void list(const struct job *job, int client) {
    uint64_t n = 0;
    struct dirent *entry;
    begin(client);
    DIR *directory = opendir(job->path);
    if (!directory) fail(job->path);
    while ((errno = 0, entry = readdir(directory))) n += entry->d_name[0] != '.';
    if (errno) fail("readdir");
    if (closedir(directory)) fail("closedir");
    end(client, n);
}

static uint64_t walk_at(int parent, const char *name) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY);
    uint64_t n = 1;
    struct dirent *entry;
    struct stat s;
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (!directory) fail(name);
    while ((errno = 0, entry = readdir(directory))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (fstatat(fd, entry->d_name, &s, AT_SYMLINK_NOFOLLOW)) fail(entry->d_name);
        n += S_ISDIR(s.st_mode) ? walk_at(fd, entry->d_name) : 1;
    }
    if (errno) fail("readdir");
    closedir(directory);
    return n;
}

static void walk(const struct job *job, int client) {
    begin(client);
    end(client, walk_at(AT_FDCWD, job->path));
}

/* -- one step of a big file ------------------------------------------------------------------------------- */

/* One byte at an offset, from open to close: no byte that verify looks at. */
static void poke(const struct job *job, int client) {
    begin(client);
    int fd = open(job->path, O_WRONLY);
    if (fd < 0) fail(job->path);
    if (pwrite(fd, "x", 1, (off_t)(job->size + 3 * sizeof(uint64_t))) != 1) fail("pwrite");
    if (close(fd)) fail("close");
    end(client, 1);
}

static void change_mode(const struct job *job, int client) {
    begin(client);
    if (chmod(job->path, 0600)) fail(job->path);
    end(client, 1);
}

static void remove_one(const struct job *job, int client) {
    begin(client);
    if (unlink(job->path)) fail(job->path);
    end(client, 1);
}

/* To PATH.moved, as mv(1) does it, which is only started where it must copy. */
static void move(const struct job *job, int client) {
    char to[PAGE];
    snprintf(to, sizeof to, "%s.moved", job->path);
    begin(client);
    if (rename(job->path, to)) {
        int status = 0;
        if (errno != EXDEV) fail(job->path);
        pid_t pid = fork();
        if (pid < 0) fail("fork");
        if (pid == 0) {
            execlp("mv", "mv", job->path, to, NULL);
            _exit(127);
        }
        if (waitpid(pid, &status, 0) < 0 || status) fail("mv");
    }
    end(client, 1);
}

/* -- starting --------------------------------------------------------------------------------------------- */

static void read_names(struct job *job) {
    FILE *file = fopen(job->path, "r");
    size_t room = 0;
    if (!file) fail(job->path);
    for (;;) {
        char *line = NULL;
        size_t bytes = 0;
        ssize_t got = getline(&line, &bytes, file);
        if (got < 0) break;
        line[got - 1] = 0;
        if (job->count == room) job->names = realloc(job->names, (room = room * 2 + 1024) * sizeof *job->names);
        job->names[job->count++] = line;
    }
    fclose(file);
}

static const struct {
    const char *name;
    void (*run)(const struct job *, int);
} JOBS[] = {
    {"read", read_sequentially}, {"randread", read_at_random},   {"write", write_new},   {"overwrite", write_over},
    {"randwrite", write_at_random}, {"mmapread", read_mapping},  {"mmapwrite", write_mapping}, {"verify", verify},
    {"open", open_close},        {"stat", stat_all},             {"create", create_all}, {"unlink", remove_all},
    {"readdir", list},           {"walk", walk},                 {"poke", poke},         {"chmod", change_mode},
    {"remove", remove_one},      {"move", move},
};

static void run(const struct job *job, void (*work)(const struct job *, int)) {
    pthread_barrierattr_t attributes;
    uint64_t begun = UINT64_MAX, ended = 0, result = 0;
    int failed = 0;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) fail("mmap");
    pthread_barrierattr_init(&attributes);
    pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&shared->barrier, &attributes, (unsigned)job->clients);
    for (int client = 0; client < job->clients; client++) {
        pid_t pid = fork();
        if (pid < 0) fail("fork");
        if (pid == 0) {
            work(job, client);
            _exit(0);
        }
    }
    for (int client = 0; client < job->clients; client++) {
        int status;
        if (wait(&status) < 0) fail("wait");
        if (status == 0 || failed) continue;
        failed = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (WIFSIGNALED(status)) fprintf(stderr, "a client was killed by signal %d\n", WTERMSIG(status));
        signal(SIGTERM, SIG_IGN);
        kill(-getpid(), SIGTERM); /* The others may wait at the barrier for the one that is gone: see main. */
    }
    if (failed) exit(failed);
    for (int client = 0; client < job->clients; client++) {
        if (shared->begun[client] < begun) begun = shared->begun[client];
        if (shared->ended[client] > ended) ended = shared->ended[client];
        result += shared->result[client];
    }
    printf("%llu %llu\n", (unsigned long long)(ended - begun), (unsigned long long)result);
}

/* probe JOB PATH KEY=VALUE...: the keys are those of struct job. To be started as the leader of a process group, so
 * that its clients can be ended together. */
int main(int argc, char **argv) {
    struct job job = {.clients = 1, .size = 0};
    if (argc < 3) return fprintf(stderr, "usage: probe JOB PATH KEY=VALUE...\n"), 2;
    job.path = argv[2];
    for (int i = 3; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value) return fprintf(stderr, "%s: not KEY=VALUE\n", argv[i]), 2;
        *value++ = 0;
        uint64_t number = strtoull(value, NULL, 10);
        if (!strcmp(argv[i], "size")) job.size = number;
        else if (!strcmp(argv[i], "count")) job.count = number;
        else if (!strcmp(argv[i], "clients")) job.clients = (int)number;
        else if (!strcmp(argv[i], "seed")) job.seed = number;
        else if (!strcmp(argv[i], "generation")) job.generation = number;
        else if (!strcmp(argv[i], "sync")) job.sync = number != 0;
        else return fprintf(stderr, "%s: no such key\n", argv[i]), 2;
    }
    if (job.clients < 1 || job.clients > MOST_CLIENTS) return fprintf(stderr, "clients: 1 to 64\n"), 2;
    if (!strcmp(argv[1], "open") || !strcmp(argv[1], "stat")) read_names(&job);
    for (size_t i = 0; i < sizeof JOBS / sizeof *JOBS; i++)
        if (!strcmp(argv[1], JOBS[i].name)) return run(&job, JOBS[i].run), 0;
    return fprintf(stderr, "%s: no such job\n", argv[1]), 2;
}
