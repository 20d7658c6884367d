/* A yardstick: what relaying tokens costs when nothing but system calls is left. One process, one epoll set.
 *
 *   relay UPSTREAM_PORT MODEL
 *
 * WebSocket clients ask, the upstream answers by chunked events, each token goes out as one frame, all frames of
 * one read by one `send`. It speaks just enough HTTP, JSON and WebSocket for upstream.c and client.c; it stores
 * nothing and stands no strangers. Says `port N`; ends with its input. */
#include "common.h"

enum { LISTENER, INPUT, CLIENT, PROVIDER };

typedef struct End {
    int kind, fd, writing, headed;
    struct End *other; /* the client of a provider's connection, and the other way round */
    Buf in, out;
} End;

static int epoll, upstream;
static const char *model;
static End *idle[8192];
static int idle_n;

static uint32_t rotated(uint32_t x, int n) { return x << n | x >> (32 - n); }

/* SHA-1 (RFC 3174) of a text that fits into two blocks; the handshake's is 60 bytes long. */
static void sha1(const unsigned char *text, size_t len, unsigned char out[20]) {
    unsigned char block[128] = {0};
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0}, w[80];
    size_t size = len < 56 ? 64 : 128;
    memcpy(block, text, len);
    block[len] = 0x80;
    block[size - 2] = (unsigned char)(len * 8 >> 8);
    block[size - 1] = (unsigned char)(len * 8);
    for (unsigned char *p = block; p < block + size; p += 64) {
        uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 80; i++) {
            w[i] = i < 16 ? (uint32_t)p[i * 4] << 24 | (uint32_t)p[i * 4 + 1] << 16 | (uint32_t)p[i * 4 + 2] << 8 | p[i * 4 + 3]
                          : rotated(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
            uint32_t f = i < 20 ? ((b & c) | (~b & d)) + 0x5a827999
                       : i < 40 ? (b ^ c ^ d) + 0x6ed9eba1
                       : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8f1bbcdc
                                : (b ^ c ^ d) + 0xca62c1d6;
            f += rotated(a, 5) + e + w[i];
            e = d, d = c, c = rotated(b, 30), b = a, a = f;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) out[i] = (unsigned char)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64(const unsigned char in[20], char out[29]) {
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0, o = 0; i < 21; i += 3, o += 4) {
        uint32_t bits = (uint32_t)in[i] << 16 | (uint32_t)in[i + 1] << 8 | (i + 2 < 20 ? in[i + 2] : 0);
        for (int k = 0; k < 4; k++) out[o + k] = DIGITS[bits >> (18 - 6 * k) & 63];
    }
    out[27] = '=';
    out[28] = 0;
}

static void hang_up(End *e) {
    if (e->other) {
        End *other = e->other;
        e->other = other->other = NULL;
        if (e->kind == CLIENT) hang_up(other);
    }
    for (int i = 0; i < idle_n; i++)
        if (idle[i] == e) idle[i] = idle[--idle_n];
    close(e->fd);
    e->fd = -1; /* freed never: an event for it may be under way, and there are few */
}

static void flush(End *e) {
    if (e->fd < 0) return;
    if (buf_flush(&e->out, e->fd)) {
        hang_up(e);
        return;
    }
    int writing = e->out.len > 0;
    if (writing != e->writing) watch(epoll, EPOLL_CTL_MOD, e->fd, EPOLLIN | (writing ? EPOLLOUT : 0), e);
    e->writing = writing;
}

static void add_frame(End *e, const char *before, const char *text, size_t len, const char *after) {
    size_t a = strlen(before), b = strlen(after), total = a + len + b;
    unsigned char head[4] = {0x81, (unsigned char)(total < 126 ? total : 126), (unsigned char)(total >> 8), (unsigned char)total};
    buf_add(&e->out, head, total < 126 ? 2 : 4);
    buf_add(&e->out, before, a);
    buf_add(&e->out, text, len);
    buf_add(&e->out, after, b);
}

static End *new_end(int kind, int fd, uint32_t events) {
    End *e = calloc(1, sizeof *e);
    e->kind = kind;
    e->fd = fd;
    e->writing = (events & EPOLLOUT) != 0;
    watch(epoll, EPOLL_CTL_ADD, fd, events, e);
    return e;
}

static void ask(End *client, const char *message, size_t len) {
    End *p = idle_n ? idle[--idle_n] : new_end(PROVIDER, connecting(upstream), EPOLLIN | EPOLLOUT);
    char body[4096], head[256];
    int size = snprintf(body, sizeof body, "{\"model\":\"%s\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"%.*s\"}]}",
                        model, (int)len, message);
    int before = sprintf(head, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", size);
    p->headed = 0;
    p->other = client;
    client->other = p;
    buf_add(&p->out, head, (size_t)before);
    buf_add(&p->out, body, (size_t)size);
    if (!p->writing) flush(p);
}

static int upgrade(End *c) {
    char *end = memmem(c->in.data, c->in.len, "\r\n\r\n", 4);
    if (!end) return 0;
    *end = 0;
    char *key = strcasestr(c->in.data, "\r\nSec-WebSocket-Key: "), joined[80], accepted[29], answer[256];
    unsigned char digest[20];
    if (!key) return -1;
    int len = sprintf(joined, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key + 21);
    sha1((unsigned char *)joined, (size_t)len, digest);
    base64(digest, accepted);
    buf_add(&c->out, answer, (size_t)sprintf(answer,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", accepted));
    add_frame(c, "{\"type\":\"welcome\"}", "", 0, "");
    buf_drop(&c->in, (size_t)(end - c->in.data) + 4);
    c->headed = 1;
    flush(c);
    return 0;
}

static int client_frames(End *c) {
    for (;;) {
        unsigned char *p = (unsigned char *)c->in.data;
        size_t head = 6, len;
        if (c->in.len < head) return 0;
        len = p[1] & 127;
        if (len == 126) {
            head = 8;
            if (c->in.len < head) return 0;
            len = (size_t)p[2] << 8 | p[3];
        }
        if (len == 127) return -1;
        if (c->in.len < head + len) return 0;
        for (size_t i = 0; i < len; i++) p[head + i] ^= p[head - 4 + (i & 3)];
        if ((p[0] & 15) == 8) return -1;
        char *text = memmem(p + head, len, "\"message\":\"", 11);
        if (text) {
            char *close = memchr(text + 11, '"', (size_t)((char *)p + head + len - text - 11));
            if (!close) return -1;
            ask(c, text + 11, (size_t)(close - text - 11));
        }
        buf_drop(&c->in, head + len);
    }
}

/* One event's tokens: the JSON text goes on as it came, escapes and all. */
static void relay(End *client, const char *data, size_t len) {
    static const char *NAMES[] = {"\"reasoning_content\":\"", "\"content\":\""};
    static const char *BEFORE[] = {"{\"type\":\"thinking_delta\",\"text\":\"", "{\"type\":\"assistant_delta\",\"text\":\""};
    for (int kind = 0; kind < 2; kind++) {
        const char *at = memmem(data, len, NAMES[kind], strlen(NAMES[kind])), *end;
        if (!at) continue;
        at += strlen(NAMES[kind]);
        for (end = at; end < data + len && *end != '"'; end++)
            if (*end == '\\') end++;
        if (end > at) add_frame(client, BEFORE[kind], at, (size_t)(end - at), "\"}");
    }
}

static int provider_chunks(End *p) {
    size_t at = 0;
    if (!p->headed) {
        char *end = memmem(p->in.data, p->in.len, "\r\n\r\n", 4);
        if (!end) return 0;
        at = (size_t)(end - p->in.data) + 4;
        p->headed = 1;
    }
    End *client = p->other;
    while (at < p->in.len) {
        char *line = memchr(p->in.data + at, '\n', p->in.len - at);
        if (!line) break;
        size_t size = strtoul(p->in.data + at, NULL, 16), from = (size_t)(line - p->in.data) + 1;
        if (p->in.len < from + size + 2) break;
        at = from + size + 2;
        if (!size) {
            if (client) add_frame(client, "{\"type\":\"turn_finished\",\"outcome\":\"completed\"}", "", 0, ""), client->other = NULL;
            p->other = NULL;
            idle[idle_n++] = p;
        } else if (client) {
            relay(client, p->in.data + from, size);
        }
    }
    buf_drop(&p->in, at);
    if (client) flush(client);
    return 0;
}

static int readable(End *e) {
    for (;;) {
        buf_room(&e->in, 65536);
        size_t room = e->in.cap - e->in.len;
        ssize_t n = recv(e->fd, e->in.data + e->in.len, room, 0);
        if (n < 0 && errno == EAGAIN) return 0;
        if (n <= 0) return -1;
        e->in.len += (size_t)n;
        int failed = e->kind == PROVIDER ? provider_chunks(e) : e->headed ? client_frames(e) : upgrade(e);
        if (failed || e->fd < 0) return failed;
        if ((size_t)n < room) return 0;
    }
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int port;
    char line[64];
    struct epoll_event events[512];
    upstream = atoi(argv[1]);
    model = argv[2];
    begin();
    int listener = listening(&port);
    epoll = epoll_create1(0);
    new_end(LISTENER, listener, EPOLLIN);
    new_end(INPUT, 0, EPOLLIN);
    printf("port %d\n", port);
    for (;;) {
        int n = epoll_wait(epoll, events, 512, -1);
        for (int i = 0; i < n; i++) {
            End *e = events[i].data.ptr;
            if (e->kind == LISTENER) {
                for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
                    no_delay(fd);
                    new_end(CLIENT, fd, EPOLLIN);
                }
            } else if (e->kind == INPUT) {
                if (command(line, sizeof line) < 0) return 0;
            } else {
                if (e->fd >= 0 && (events[i].events & EPOLLOUT)) flush(e);
                if (e->fd >= 0 && (events[i].events & ~(uint32_t)EPOLLOUT) && readable(e)) hang_up(e);
            }
        }
    }
}
