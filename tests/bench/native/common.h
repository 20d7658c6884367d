/* What the benchmark's programs share: time, growing buffers, loopback sockets, commands on standard input. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

/* CLOCK_MONOTONIC: the same in every process of this machine, and what Python's time.monotonic_ns is. */
static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

typedef struct {
    char *data;
    size_t len, cap;
} Buf;

static inline void buf_room(Buf *b, size_t more) {
    if (b->len + more <= b->cap) return;
    size_t cap = b->cap ? b->cap : 1024;
    while (cap < b->len + more) cap *= 2;
    b->data = realloc(b->data, cap);
    if (!b->data) die("memory");
    b->cap = cap;
}

static inline void buf_add(Buf *b, const void *data, size_t len) {
    buf_room(b, len);
    memcpy(b->data + b->len, data, len);
    b->len += len;
}

static inline void buf_drop(Buf *b, size_t len) {
    b->len -= len;
    if (b->len) memmove(b->data, b->data + len, b->len);
}

/* Sends what the socket takes now and drops it from the buffer; -1: the connection failed. */
static inline int buf_flush(Buf *b, int fd) {
    size_t sent = 0;
    while (sent < b->len) {
        ssize_t n = send(fd, b->data + sent, b->len - sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) break;
            if (errno == EINTR) continue;
            return -1;
        }
        sent += (size_t)n;
    }
    buf_drop(b, sent);
    return 0;
}

static inline void non_blocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

static inline void no_delay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static inline int listening(int *port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = loopback(0);
    socklen_t size = sizeof a;
    if (bind(fd, (struct sockaddr *)&a, size) || listen(fd, 4096)) die("listen");
    getsockname(fd, (struct sockaddr *)&a, &size);
    *port = ntohs(a.sin_port);
    return fd;
}

static inline int connecting(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0) die("socket");
    struct sockaddr_in a = loopback(port);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) && errno != EINPROGRESS) die("connect");
    no_delay(fd);
    return fd;
}

static inline void watch(int epoll, int op, int fd, uint32_t events, void *who) {
    struct epoll_event e = {.events = events, .data.ptr = who};
    if (epoll_ctl(epoll, op, fd, &e)) die("epoll_ctl");
}

static inline void many_descriptors(void) {
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r);
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
}

/* Precise timers, and no buffering of the lines that whoever started us waits for. */
static inline void begin(void) {
    prctl(PR_SET_TIMERSLACK, 1);
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    many_descriptors();
    non_blocking(0);
}

/* One command line of standard input; 0: none yet, -1: its end, which is ours. */
static inline int command(char *line, size_t size) {
    static Buf in;
    buf_room(&in, 256);
    ssize_t n = read(0, in.data + in.len, 256);
    if (n == 0) return -1;
    if (n > 0) in.len += (size_t)n;
    char *end = in.len ? memchr(in.data, '\n', in.len) : NULL;
    if (!end) return 0;
    size_t len = (size_t)(end - in.data);
    if (len >= size) len = size - 1;
    memcpy(line, in.data, len);
    line[len] = 0;
    buf_drop(&in, (size_t)(end - in.data) + 1);
    return 1;
}
