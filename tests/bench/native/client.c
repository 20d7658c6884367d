/* The load: many WebSocket clients in one process, which check every token and measure how late it is.
 *
 *   client PORT PATH SOCKETS TOKENS THINKING     ask and read streams of a service
 *   client PORT direct 1 TOKENS THINKING RATE    the same of the upstream itself, by HTTP: `serial` only
 *
 * A stream is right if its tokens (see upstream.c) come in order, all of them, the first THINKING as thinking
 * and the others as text; the whole text of `assistant_message`, where there is one, is the same bytes; and
 * `turn_finished` says completed. Anything else is counted as wrong, and the first such case is told.
 *
 * Answers each command on standard input by one line of JSON:
 *   (start)    when all sockets are welcomed
 *   go         when every stream has begun; asks on every socket, at most 64 ahead of those that have
 *   mark       tokens and frames since the last mark, and quantiles of their lateness
 *   finish     when every stream has ended
 *   serial N   N turns one after the other over all sockets: quantiles of the time to the first token
 * Ends with its input. */
#include "common.h"

enum { CONNECTING, UPGRADING, OPEN };
enum { AHEAD = 64 };

typedef struct {
    int fd, state, writing, asking, begun, ended;
    uint32_t next;
    uint64_t asked, turns, text_hash;
    Buf in, out;
} Socket;

static int epoll, port, count, opened, direct, started, finished, rate;
static const char *path;
static uint32_t tokens, thinking;
static Socket *sockets;
static uint32_t *lateness; /* in units of 100 ns */
static size_t late_n, late_cap;
static uint64_t all_tokens, all_frames, all_bytes, wrong, mark_tokens, mark_frames, mark_bytes, mark_ns;
static char complaint[256];
static int going, finishing, asked_n;
static uint64_t serial_left, *firsts;
static size_t firsts_n;

static void complain(Socket *s, const char *what, const char *data, size_t len) {
    if (!wrong++)
        snprintf(complaint, sizeof complaint, "socket %d, token %u: %s: %.*s", (int)(s - sockets), s->next, what,
                 (int)(len > 120 ? 120 : len), data);
    for (char *c = complaint; *c; c++)
        if (*c == '"' || *c == '\\' || *c < ' ') *c = '\'';
}

static uint64_t hash(uint64_t h, const char *data, size_t len) {
    while (len--) h = (h ^ (unsigned char)*data++) * 1099511628211ull;
    return h;
}

static void note(uint64_t late) {
    if (late_n == late_cap) {
        lateness = realloc(lateness, sizeof *lateness * (late_cap = late_cap ? late_cap * 2 : 65536));
        if (!lateness) die("memory");
    }
    late /= 100;
    lateness[late_n++] = late > UINT32_MAX ? UINT32_MAX : (uint32_t)late;
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double quantile(double q) {
    if (!late_n) return 0;
    size_t i = (size_t)(q * (double)late_n);
    return lateness[i < late_n ? i : late_n - 1] / 10.0;
}

static void quantiles(void) {
    qsort(lateness, late_n, sizeof *lateness, by_size);
    printf("\"samples\":%zu,\"p50_us\":%.1f,\"p90_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f}\n", late_n,
           quantile(.5), quantile(.9), quantile(.99), quantile(.999), late_n ? lateness[late_n - 1] / 10.0 : 0);
    late_n = 0;
}

static void mark(void) {
    uint64_t now = now_ns();
    printf("{\"wrong\":%llu,\"complaint\":\"%s\",\"ended\":%d,\"seconds\":%.6f,\"tokens\":%llu,\"frames\":%llu,\"bytes\":%llu,",
           (unsigned long long)wrong, complaint, finished, (double)(now - mark_ns) / 1e9,
           (unsigned long long)(all_tokens - mark_tokens), (unsigned long long)(all_frames - mark_frames),
           (unsigned long long)(all_bytes - mark_bytes));
    quantiles();
    mark_tokens = all_tokens;
    mark_frames = all_frames;
    mark_bytes = all_bytes;
    mark_ns = now;
}

static void lose(Socket *s, const char *why) {
    complain(s, why, "", 0);
    close(s->fd);
    s->fd = -1;
    if (s->asking && !s->ended) finished++, s->ended = 1;
    if (s->asking && !s->begun) started++, s->begun = 1;
}

static void flush(Socket *s) {
    if (buf_flush(&s->out, s->fd)) {
        lose(s, "the connection failed");
        return;
    }
    int writing = s->out.len > 0;
    if (writing != s->writing) watch(epoll, EPOLL_CTL_MOD, s->fd, EPOLLIN | (writing ? EPOLLOUT : 0), s);
    s->writing = writing;
}

static void frame(Socket *s, int opcode, const char *data, size_t len) {
    unsigned char head[8] = {(unsigned char)(0x80 | opcode), (unsigned char)(0x80 | (len < 126 ? len : 126))};
    size_t n = 2;
    if (len >= 126) head[n++] = (unsigned char)(len >> 8), head[n++] = (unsigned char)len;
    buf_add(&s->out, head, n);
    buf_add(&s->out, "\0\0\0\0", 4); /* a mask of zeros changes nothing, and is a mask */
    buf_add(&s->out, data, len);
    flush(s);
}

static void ask(Socket *s) {
    char text[512];
    s->next = 0;
    s->text_hash = 14695981039346656037ull;
    s->asking = 1;
    s->begun = s->ended = 0;
    s->turns++;
    s->asked = now_ns();
    if (direct) {
        char body[256];
        int len = sprintf(body, "{\"model\":\"bench-%d-%u-%u\",\"stream\":true}", rate, tokens, thinking);
        buf_add(&s->out, text, (size_t)sprintf(text, "POST /v1/chat/completions HTTP/1.1\r\nHost: b\r\nContent-Length: %d\r\n\r\n%s", len, body));
        flush(s);
        return;
    }
    int len = sprintf(text, "{\"type\":\"user_message\",\"request_id\":\"%d-%llu\",\"message\":\"Tell me what time it is.\"}",
                      (int)(s - sockets), (unsigned long long)s->turns);
    frame(s, 1, text, (size_t)len);
}

static void next_serial(Socket *s);

/* A few ahead of the answers: how a burst of questions is taken is another table's subject. */
static void ask_more(void) {
    for (; going && asked_n < count && asked_n - started < AHEAD; asked_n++) {
        Socket *s = &sockets[asked_n];
        if (s->fd >= 0) ask(s);
        else started++, finished++;
    }
}

static void begun(Socket *s, uint64_t now) {
    if (s->begun) return;
    s->begun = 1;
    started++;
    if (serial_left) firsts[firsts_n++] = now - s->asked;
    ask_more();
}

static void ended(Socket *s) {
    if (s->ended || !s->asking) return;
    s->ended = 1;
    s->asking = 0;
    finished++;
    if (s->next != tokens) complain(s, "the stream is too short", "", 0);
    if (serial_left) next_serial(s);
}

/* Tokens " INDEX:NANOSECONDS" one after the other, up to a quote. */
static const char *take_tokens(Socket *s, const char *p, const char *end, int thought, uint64_t now) {
    const char *from = p;
    while (p < end && *p != '"') {
        uint64_t index = 0, stamp = 0;
        if (*p++ != ' ') goto bad;
        while (p < end && *p >= '0' && *p <= '9') index = index * 10 + (uint64_t)(*p++ - '0');
        if (p == end || *p++ != ':') goto bad;
        for (; p < end; p++) {
            int digit = *p >= '0' && *p <= '9' ? *p - '0' : *p >= 'a' && *p <= 'f' ? *p - 'a' + 10 : -1;
            if (digit < 0) break;
            stamp = stamp << 4 | (uint64_t)digit;
        }
        if (index != s->next || thought != (s->next < thinking)) {
            complain(s, "not the next token", from, (size_t)(end - from));
            s->next = (uint32_t)index; /* one mistake, not one for each token after it */
        }
        begun(s, now);
        s->next++;
        all_tokens++;
        note(now > stamp ? now - stamp : 0);
    }
    if (!thought) s->text_hash = hash(s->text_hash, from, (size_t)(p - from));
    return p;
bad:
    complain(s, "no token", from, (size_t)(end - from));
    return end;
}

/* What follows `"name":` and a quote, spaces allowed; NULL if it is not there. */
static const char *value_of(const char *name, const char *p, const char *end) {
    size_t len = strlen(name);
    const char *at = memmem(p, (size_t)(end - p), name, len);
    if (!at) return NULL;
    for (at += len; at < end && *at == ' ';) at++;
    return at < end && *at == '"' ? at + 1 : NULL;
}

static int starts(const char *p, const char *end, const char *with) {
    size_t len = strlen(with);
    return p && (size_t)(end - p) >= len && !memcmp(p, with, len);
}

static void message(Socket *s, const char *p, size_t len, uint64_t now) {
    const char *end = p + len, *type = value_of("\"type\":", p, end), *text;
    all_frames++;
    if (starts(type, end, "assistant_delta\"") || starts(type, end, "thinking_delta\"")) {
        if ((text = value_of("\"text\":", type, end))) take_tokens(s, text, end, type[0] == 't', now);
    } else if (starts(type, end, "assistant_message\"")) {
        if ((text = value_of("\"message\":", type, end))) {
            const char *close = memchr(text, '"', (size_t)(end - text));
            if (!close || hash(14695981039346656037ull, text, (size_t)(close - text)) != s->text_hash)
                complain(s, "the whole text is not that of the deltas", p, len);
        }
    } else if (starts(type, end, "turn_finished\"")) {
        if (!memmem(p, len, "\"completed\"", 11)) complain(s, "the turn did not complete", p, len);
        ended(s);
    } else if (starts(type, end, "error\"")) {
        complain(s, "an error came", p, len);
    } else if (starts(type, end, "welcome\"")) {
        opened++;
    }
}

/* Whole WebSocket frames in the buffer. */
static void frames(Socket *s, uint64_t now) {
    size_t at = 0;
    while (s->fd >= 0) {
        unsigned char *p = (unsigned char *)s->in.data + at;
        size_t left = s->in.len - at, head = 2;
        if (left < head) break;
        uint64_t len = p[1] & 127;
        if (len == 126) {
            if (left < (head = 4)) break;
            len = (uint64_t)p[2] << 8 | p[3];
        } else if (len == 127) {
            if (left < (head = 10)) break;
            len = 0;
            for (int i = 2; i < 10; i++) len = len << 8 | p[i];
        }
        if (left < head + len) break;
        const char *data = (const char *)p + head;
        switch (p[0]) {
        case 0x81: message(s, data, len, now); break;
        case 0x89: frame(s, 10, data, len); break;
        case 0x8a: break;
        case 0x88: lose(s, "the service closed the socket"); return;
        default: complain(s, "a frame of an unexpected kind", data, len);
        }
        at += head + len;
    }
    if (s->fd >= 0) buf_drop(&s->in, at);
}

/* The body of a direct answer, roughly: the chunks that this benchmark's own upstream sends. */
static void body(Socket *s, uint64_t now) {
    char *p = s->in.data, *end = p + s->in.len, *line;
    while ((line = memchr(p, '\n', (size_t)(end - p)))) {
        const char *text;
        if ((text = value_of("\"content\":", p, line)) && *text == ' ') take_tokens(s, text, line, 0, now);
        if ((text = value_of("\"reasoning_content\":", p, line))) take_tokens(s, text, line, 1, now);
        if (line - p == 2 && *p == '0') ended(s);
        p = line + 1;
    }
    buf_drop(&s->in, (size_t)(p - s->in.data));
}

static void readable(Socket *s) {
    while (s->fd >= 0) {
        buf_room(&s->in, 4096);
        ssize_t n = recv(s->fd, s->in.data + s->in.len, s->in.cap - s->in.len, 0);
        if (n < 0 && errno == EAGAIN) break;
        if (n <= 0) {
            lose(s, "the service hung up");
            return;
        }
        uint64_t now = now_ns();
        s->in.len += (size_t)n;
        all_bytes += (uint64_t)n;
        if (s->state == UPGRADING) {
            char *end = memmem(s->in.data, s->in.len, "\r\n\r\n", 4);
            if (!end) continue;
            if (!starts(s->in.data, s->in.data + s->in.len, "HTTP/1.1 101")) {
                complain(s, "the handshake was refused", s->in.data, s->in.len);
                lose(s, "refused");
                return;
            }
            buf_drop(&s->in, (size_t)(end - s->in.data) + 4);
            s->state = OPEN;
        }
        if (direct) body(s, now);
        else frames(s, now);
    }
}

static void writable(Socket *s) {
    if (s->state == CONNECTING) {
        if (direct) {
            s->state = OPEN;
            opened++;
        } else {
            char text[512];
            s->state = UPGRADING;
            buf_add(&s->out, text, (size_t)sprintf(text,
                "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", path, port));
        }
    }
    flush(s);
}

static void connect_some(void) {
    static int made;
    for (; made < count && made - opened < AHEAD; made++) {
        Socket *s = &sockets[made];
        s->fd = connecting(port);
        s->writing = 1;
        watch(epoll, EPOLL_CTL_ADD, s->fd, EPOLLIN | EPOLLOUT, s);
    }
}

static void next_serial(Socket *s) {
    if (--serial_left) {
        ask(&sockets[(s - sockets + 1) % count]);
        return;
    }
    late_n = 0;
    for (size_t i = 0; i < firsts_n; i++) note(firsts[i]);
    printf("{\"wrong\":%llu,\"complaint\":\"%s\",", (unsigned long long)wrong, complaint);
    quantiles();
    firsts_n = 0;
}

static void obey(const char *line) {
    if (!strcmp(line, "go")) {
        started = finished = asked_n = 0;
        going = 1;
        ask_more();
    } else if (!strcmp(line, "mark")) {
        mark();
    } else if (!strcmp(line, "finish")) {
        finishing = 1;
    } else if (!strncmp(line, "serial ", 7)) {
        serial_left = strtoull(line + 7, NULL, 10);
        firsts = realloc(firsts, sizeof *firsts * serial_left);
        ask(&sockets[0]);
    }
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    port = atoi(argv[1]);
    path = argv[2];
    direct = !strcmp(path, "direct");
    count = atoi(argv[3]);
    tokens = (uint32_t)atoi(argv[4]);
    thinking = (uint32_t)atoi(argv[5]);
    rate = argc > 6 ? atoi(argv[6]) : 0;
    sockets = calloc((size_t)count, sizeof *sockets);
    begin();
    epoll = epoll_create1(0);
    watch(epoll, EPOLL_CTL_ADD, 0, EPOLLIN, &epoll);
    mark_ns = now_ns();
    char line[256];
    struct epoll_event events[512];
    for (int ready = 0;;) {
        if (!ready) {
            connect_some();
            if (opened == count || wrong) {
                ready = 1;
                mark();
            }
        }
        if (going && started == count) going = 0, mark();
        if (finishing && finished == count) finishing = 0, mark();
        int n = epoll_wait(epoll, events, 512, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr == &epoll) {
                for (int got; (got = command(line, sizeof line));) {
                    if (got < 0) return 0;
                    obey(line);
                }
                continue;
            }
            Socket *s = events[i].data.ptr;
            if (s->fd >= 0 && (events[i].events & EPOLLOUT)) writable(s);
            if (s->fd >= 0 && (events[i].events & ~(uint32_t)EPOLLOUT)) readable(s);
        }
    }
}
