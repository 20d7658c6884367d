/* An OpenAI-compatible provider for benchmarks: POST chat/completions, answered by a stream of events.
 *
 * One process, one epoll set, one `send` and one HTTP chunk per token. The request's model says what is wanted,
 * "bench-RATE-TOKENS-THINKING[-TOOL]": tokens per second of this stream (0: as fast as they are taken), how many, and
 * how many of the first are reasoning; with a tool, a call of it with {"a": 1, "b": 2} comes first, and the tokens
 * when it was answered. A token is " INDEX:NANOSECONDS" (hexadecimal, monotonic clock): when it
 * was made, which is when it was sent, or when it was due if the peer did not take the one before. Streams begin
 * at different moments of their first interval, as real ones do: tokens of many streams do not come in one lump.
 *
 *   upstream [GRAIN]     tokens leave at multiples of so many microseconds only, as of a program with coarse timers
 *
 * Says `port N` on standard output. Commands on standard input: after `hold` a stream stops with its first token
 * until `release`, so that all of them run when it counts; `mark` does nothing. Each answers a line of JSON with
 * the tokens made and the worst lateness since the last one, which shows whether this program kept up. Ends with
 * its input. */
#include "common.h"

struct List;

typedef struct Conn {
    int fd;
    Buf in, out;
    int active, blocked, writing;
    uint32_t id, index, tokens, thinking;
    uint64_t interval, due;
    struct List *list; /* in which it waits for its next token, and where */
    int place;
    char model[64];
} Conn;

typedef struct List {
    Conn **of;
    int n, cap;
} List;

static int epoll, listener, holding;
static List paced, flat, held; /* a heap by `due`; streams without a pace; streams that wait for `release` */
static uint64_t made, late, grain = 1;
static uint32_t streams, running;

static void put(List *l, int i, Conn *c) {
    l->of[i] = c;
    c->place = i;
}

static void sift(int i) {
    List *l = &paced;
    Conn *c = l->of[i];
    while (i && l->of[(i - 1) / 2]->due > c->due) put(l, i, l->of[(i - 1) / 2]), i = (i - 1) / 2;
    for (int child; (child = 2 * i + 1) < l->n; i = child) {
        if (child + 1 < l->n && l->of[child + 1]->due < l->of[child]->due) child++;
        if (l->of[child]->due >= c->due) break;
        put(l, i, l->of[child]);
    }
    put(l, i, c);
}

/* Its next token is made when it is due; in a held program, not before `release` if it has had one. */
static void schedule(Conn *c) {
    if (c->list) return;
    List *l = c->list = holding && c->index ? &held : c->interval ? &paced : &flat;
    if (l->n == l->cap) l->of = realloc(l->of, sizeof(Conn *) * (size_t)(l->cap = l->cap ? l->cap * 2 : 64));
    put(l, l->n++, c);
    if (l == &paced) sift(c->place);
}

static void unschedule(Conn *c) {
    if (!c->list) return;
    List *l = c->list;
    int i = c->place;
    c->list = NULL;
    Conn *last = l->of[--l->n];
    if (last == c) return;
    put(l, i, last);
    if (l == &paced) sift(i);
}

/* A golden section spreads the phases of however many streams evenly over an interval; the first has none. */
static void begin_pace(Conn *c) {
    c->due = now_ns() + (uint64_t)((double)c->interval * ((double)((c->id - 1) * 2654435769u) / 4294967296.0));
    c->due += grain - 1 - (c->due - 1) % grain; /* intervals are multiples of it, so this is enough */
}

static void release(void) {
    holding = 0;
    while (held.n) {
        Conn *c = held.of[held.n - 1];
        unschedule(c);
        begin_pace(c);
        schedule(c);
    }
}

static void hang_up(Conn *c) {
    unschedule(c);
    running -= (uint32_t)c->active;
    close(c->fd);
    free(c->in.data);
    free(c->out.data);
    free(c);
}

/* Waits for room to write exactly while something waits to be written. */
static void rewatch(Conn *c) {
    int writing = c->out.len > 0;
    if (writing != c->writing) watch(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN | (writing ? EPOLLOUT : 0), c);
    c->writing = writing;
}

static void chunk(Conn *c, const char *data, size_t len) {
    char head[16];
    buf_add(&c->out, head, (size_t)sprintf(head, "%zx\r\n", len));
    buf_add(&c->out, data, len);
    buf_add(&c->out, "\r\n", 2);
}

static size_t event(Conn *c, char *into, const char *delta, const char *more) {
    return (size_t)sprintf(into,
        "data: {\"id\":\"chatcmpl-%08x\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,"
        "\"model\":\"%s\",\"choices\":[{\"index\":0,\"delta\":{%s},\"logprobs\":null,%s]}\n\n", c->id, c->model, delta, more);
}

static int end_stream(Conn *c, const char *reason) {
    char text[1024], finish[64];
    sprintf(finish, "\"finish_reason\":\"%s\"}", reason);
    chunk(c, text, event(c, text, "", finish));
    int len = sprintf(text,
        "data: {\"id\":\"chatcmpl-%08x\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,\"model\":\"%s\","
        "\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":%u,\"total_tokens\":%u}}\n\n",
        c->id, c->model, c->tokens, c->tokens + 9);
    chunk(c, text, (size_t)len);
    chunk(c, "data: [DONE]\n\n", 14);
    buf_add(&c->out, "0\r\n\r\n", 5);
    unschedule(c);
    c->active = 0;
    running--;
    int failed = buf_flush(&c->out, c->fd);
    if (!failed) rewatch(c);
    return failed;
}

/* Makes the stream's next token; -1: the connection failed. */
static int token(Conn *c, uint64_t now) {
    char delta[128], text[1024];
    uint64_t stamp = c->blocked ? c->due : now;
    sprintf(delta, "\"%s\":\" %u:%llx\"", c->index < c->thinking ? "reasoning_content" : "content", c->index,
            (unsigned long long)stamp);
    chunk(c, text, event(c, text, delta, "\"finish_reason\":null}"));
    c->index++;
    made++;
    if (c->interval && !c->blocked && now - c->due > late) late = now - c->due;
    c->due += c->interval;
    if (c->due > now) c->blocked = 0;
    if (c->index == c->tokens) return end_stream(c, "stop");
    if (buf_flush(&c->out, c->fd)) return -1;
    if (c->out.len) {
        c->blocked = 1;
        unschedule(c);
        rewatch(c);
    } else if (holding) {
        unschedule(c);
        schedule(c);
    } else if (c->interval) {
        sift(c->place);
    }
    return 0;
}

/* The last message of the request is a tool's. */
static int tool_answered(const char *body, size_t len) {
    const char *last = NULL;
    for (const char *p = body; (p = memmem(p, (size_t)(body + len - p), "\"role\":\"", 8)); last = p += 8) {}
    return last && !strncmp(last, "tool\"", 5);
}

static int answer(Conn *c, const char *body, size_t len) {
    static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
                               "Transfer-Encoding: chunked\r\n\r\n";
    char text[1024], tool[32] = "", delta[256];
    unsigned rate = 50;
    c->id = ++streams;
    c->index = 0;
    c->tokens = 100;
    c->thinking = 0;
    sscanf(c->model, "bench-%u-%u-%u-%31s", &rate, &c->tokens, &c->thinking, tool);
    c->interval = rate ? 1000000000ull / rate : 0;
    begin_pace(c);
    if (holding) c->due = now_ns();
    c->blocked = 0;
    c->active = 1;
    running++;
    buf_add(&c->out, HEAD, sizeof HEAD - 1);
    chunk(c, text, event(c, text, "\"role\":\"assistant\",\"content\":\"\"", "\"finish_reason\":null}"));
    if (tool[0] && !tool_answered(body, len)) {
        sprintf(delta, "\"tool_calls\":[{\"index\":0,\"id\":\"call-%u\",\"type\":\"function\",\"function\":{\"name\":\"%s\","
                "\"arguments\":\"{\\\"a\\\": 1, \\\"b\\\": 2}\"}}]", c->id, tool);
        chunk(c, text, event(c, text, delta, "\"finish_reason\":null}"));
        return end_stream(c, "tool_calls");
    }
    schedule(c);
    return 0;
}

/* Whole requests in the buffer, one after the other; -1: it is no request, or the peer is gone. */
static int requests(Conn *c) {
    while (!c->active && c->in.len) {
        char *end = memmem(c->in.data, c->in.len, "\r\n\r\n", 4);
        if (!end) return c->in.len > 65536 ? -1 : 0;
        size_t head = (size_t)(end - c->in.data) + 4, body = 0;
        *end = 0;
        char *length = strcasestr(c->in.data, "\r\nContent-Length:");
        *end = '\r';
        if (length) body = strtoul(length + 17, NULL, 10);
        if (c->in.len < head + body) return 0;
        c->model[0] = 0;
        char *model = memmem(c->in.data + head, body, "\"bench-", 7);
        if (model) sscanf(model + 1, "%63[a-z0-9_-]", c->model);
        int failed = answer(c, c->in.data + head, body);
        buf_drop(&c->in, head + body);
        if (failed || buf_flush(&c->out, c->fd)) return -1;
        rewatch(c);
    }
    return 0;
}

static int readable(Conn *c) {
    for (;;) {
        buf_room(&c->in, 16384);
        ssize_t n = recv(c->fd, c->in.data + c->in.len, c->in.cap - c->in.len, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) return -1;
        if (n < 0) return requests(c);
        c->in.len += (size_t)n;
    }
}

static int writable(Conn *c) {
    if (buf_flush(&c->out, c->fd)) return -1;
    rewatch(c);
    if (c->out.len || !c->active) return 0;
    if (!c->interval) c->blocked = 0; /* nothing was due meanwhile */
    schedule(c);
    return 0;
}

static void arrive(void) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        /* little is in flight when the peer does not keep up: what waits in kernels would be latency of nobody */
        int size = 16384;
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        no_delay(fd);
        Conn *c = calloc(1, sizeof *c);
        c->fd = fd;
        watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, c);
    }
}

int main(int argc, char **argv) {
    int port, in = 0;
    char line[64];
    struct epoll_event events[512];
    if (argc > 1 && atoi(argv[1])) grain = strtoull(argv[1], NULL, 10) * 1000;
    begin();
    listener = listening(&port);
    epoll = epoll_create1(0);
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    watch(epoll, EPOLL_CTL_ADD, 0, EPOLLIN, &in);
    printf("port %d\n", port);
    for (;;) {
        uint64_t now = now_ns();
        struct timespec wait = {0, 0}, *timeout = NULL;
        if (paced.n) {
            uint64_t left = paced.of[0]->due > now ? paced.of[0]->due - now : 0;
            wait.tv_sec = (time_t)(left / 1000000000ull);
            wait.tv_nsec = (long)(left % 1000000000ull);
        }
        if (paced.n || flat.n) timeout = &wait;
        if (flat.n) wait.tv_sec = wait.tv_nsec = 0;
        int n = epoll_pwait2(epoll, events, 512, timeout, NULL);
        for (int i = 0; i < n; i++) {
            void *who = events[i].data.ptr;
            if (who == &listener) {
                arrive();
            } else if (who == &in) {
                for (int got; (got = command(line, sizeof line));) {
                    if (got < 0) return 0;
                    if (!strcmp(line, "hold")) holding = 1;
                    if (!strcmp(line, "release")) release();
                    printf("{\"made\":%llu,\"late_us\":%llu,\"running\":%u}\n", (unsigned long long)made,
                           (unsigned long long)(late / 1000), running);
                    late = 0;
                }
            } else {
                Conn *c = who;
                int gone = (events[i].events & EPOLLOUT) ? writable(c) : 0;
                if (!gone && (events[i].events & ~(uint32_t)EPOLLOUT)) gone = readable(c);
                if (gone) hang_up(c);
            }
        }
        now = now_ns();
        while (paced.n && paced.of[0]->due <= now) {
            Conn *c = paced.of[0];
            if (token(c, now)) hang_up(c);
        }
        for (int i = flat.n - 1; i >= 0; i--) {
            Conn *c = flat.of[i];
            if (token(c, now_ns())) hang_up(c);
        }
    }
}
