// Load on a RADIUS server: a fixed number of requests in flight, one in each slot, for some seconds.
// radload MODE AUTH_PORT ACCT_PORT SECRET SLOTS SECONDS USERS SESSIONS_EACH TAG
// MODE interim: interim updates of session b0-<user>, over all users in random order, again and again
// MODE stop:    stops of session b<k>-<user>, each once; the load ends when all are stopped
// MODE pair:    an access request; when it is accepted, the start of a new session, named by TAG
// The result is one line of JSON. Latency is the time from the first packet of an operation to its last answer.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { ACCESS_REQUEST = 1, ACCESS_ACCEPT = 2, ACCOUNTING_REQUEST = 4, ACCOUNTING_RESPONSE = 5 };
enum { START = 1, STOP = 2, INTERIM = 3 };
enum {
    USER_NAME = 1, USER_PASSWORD = 2, NAS_IP_ADDRESS = 4, NAS_PORT = 5, CALLING_STATION_ID = 31, STATUS_TYPE = 40,
    INPUT_OCTETS = 42, OUTPUT_OCTETS = 43, SESSION_ID = 44, SESSION_TIME = 46, TERMINATE_CAUSE = 49,
    MESSAGE_AUTHENTICATOR = 80
};

#define HEADER 20
#define RETRANSMIT_NS 3000000000ull
#define GIVE_UP_NS 4000000000ull
#define MOST_LATENCIES 4000000

typedef struct {
    uint8_t bytes[1024];
    int length;
} packet;

typedef struct {
    int auth, acct;      // sockets, each with a port of its own
    uint8_t id;          // identifier of the packet in flight
    bool starting;       // the access request of a pair is accepted, and its start is in flight
    bool done;
    uint64_t began_at, sent_at;
    char user[32], session[64];
    packet packet;
} slot;

static const char *mode, *secret, *tag;
static uint32_t users, sessions_each, *order;
static uint64_t operations;
static uint32_t *latencies_us;
static uint64_t latencies;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static uint64_t random_bits(void) {
    static uint64_t state;
    if (!state) state = now() | 1;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void put(packet *p, int type, const void *value, int length) {
    p->bytes[p->length] = type;
    p->bytes[p->length + 1] = length + 2;
    memcpy(p->bytes + p->length + 2, value, length);
    p->length += length + 2;
}

static void put_text(packet *p, int type, const char *text) { put(p, type, text, strlen(text)); }

static void put_number(packet *p, int type, uint32_t number) {
    number = htonl(number);
    put(p, type, &number, 4);
}

static void md5(const void *a, int a_length, const void *b, int b_length, uint8_t *digest) {
    static EVP_MD_CTX *context;
    if (!context) context = EVP_MD_CTX_new();
    EVP_DigestInit_ex(context, EVP_md5(), NULL);
    EVP_DigestUpdate(context, a, a_length);
    EVP_DigestUpdate(context, b, b_length);
    EVP_DigestFinal_ex(context, digest, NULL);
}

static void begin(packet *p, int code, int id) {
    memset(p, 0, sizeof *p);
    p->bytes[0] = code;
    p->bytes[1] = id;
    p->length = HEADER;
}

static void set_length(packet *p) {
    p->bytes[2] = p->length >> 8;
    p->bytes[3] = p->length & 255;
}

static void put_device(packet *p, const char *session) {
    char station[80];
    snprintf(station, sizeof station, "aa:bb:%s", session);
    put_number(p, NAS_IP_ADDRESS, INADDR_LOOPBACK);
    put_number(p, NAS_PORT, 1);
    put_text(p, CALLING_STATION_ID, station);
    put_text(p, SESSION_ID, session);
}

static void access_request(slot *s) {
    packet *p = &s->packet;
    uint8_t zeros[16] = {0}, password[16] = {'p', 'w'}, key[16];
    begin(p, ACCESS_REQUEST, s->id);
    for (int i = 4; i < HEADER; i++) p->bytes[i] = random_bits();
    put(p, MESSAGE_AUTHENTICATOR, zeros, 16);
    put_text(p, USER_NAME, s->user);
    md5(secret, strlen(secret), p->bytes + 4, 16, key);
    for (int i = 0; i < 16; i++) password[i] ^= key[i];
    put(p, USER_PASSWORD, password, 16);
    put_device(p, s->session);
    set_length(p);
    unsigned length = 16;
    HMAC(EVP_md5(), secret, strlen(secret), p->bytes, p->length, p->bytes + HEADER + 2, &length);
}

static void accounting_request(slot *s, int status) {
    packet *p = &s->packet;
    begin(p, ACCOUNTING_REQUEST, s->id);
    put_number(p, STATUS_TYPE, status);
    put_text(p, USER_NAME, s->user);
    put_device(p, s->session);
    if (status != START) {
        put_number(p, SESSION_TIME, 60 + random_bits() % 3600);
        put_number(p, INPUT_OCTETS, random_bits() & 0xffffff);
        put_number(p, OUTPUT_OCTETS, random_bits() & 0xffffff);
    }
    if (status == STOP) put_number(p, TERMINATE_CAUSE, 1);
    set_length(p);
    md5(p->bytes, p->length, secret, strlen(secret), p->bytes + 4);
}

static void transmit(slot *s) {
    int socket = s->packet.bytes[0] == ACCESS_REQUEST ? s->auth : s->acct;
    s->sent_at = now();
    if (send(socket, s->packet.bytes, s->packet.length, 0) < 0 && errno != EAGAIN) perror("radload: send");
}

// Send the next operation of the load in this slot, if there is one.
static void next_operation(slot *s) {
    static uint64_t sequence;
    uint64_t number = sequence++;
    uint32_t user = order[number % users];
    bool pair = !strcmp(mode, "pair"), stop = !strcmp(mode, "stop");
    if (stop && number >= (uint64_t)users * sessions_each) {
        s->done = true;
        return;
    }
    snprintf(s->user, sizeof s->user, "u%06u", user);
    if (pair) snprintf(s->session, sizeof s->session, "%s-%lu", tag, number);
    else snprintf(s->session, sizeof s->session, "b%u-%06u", stop ? (unsigned)(number / users) : 0, user);
    s->id++;
    s->starting = false;
    s->began_at = now();
    if (pair) access_request(s);
    else accounting_request(s, stop ? STOP : INTERIM);
    transmit(s);
}

static void finish(slot *s, uint64_t ends_at) {
    uint64_t time = now();
    operations++;
    if (latencies < MOST_LATENCIES) latencies_us[latencies++] = (time - s->began_at) / 1000;
    if (time >= ends_at) s->done = true;
    else next_operation(s);
}

static void receive(slot *s, bool is_accounting, uint64_t ends_at) {
    uint8_t answer[4096];
    while (recv(is_accounting ? s->acct : s->auth, answer, sizeof answer, 0) >= HEADER) {
        if (s->done || answer[1] != s->id) continue;
        if (answer[0] == ACCOUNTING_RESPONSE) {
            finish(s, ends_at);
        } else if (answer[0] == ACCESS_ACCEPT && !s->starting) {
            s->starting = true;
            s->id++;
            accounting_request(s, START);
            transmit(s);
        } else if (answer[0] != ACCESS_ACCEPT) {
            fprintf(stderr, "radload: %s was rejected\n", s->user);
            exit(1);
        }
    }
}

static int open_socket(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int opened = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (opened < 0 || connect(opened, (void *)&address, sizeof address)) {
        perror("radload: socket");
        exit(1);
    }
    return opened;
}

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void shuffle_users(void) {
    order = malloc(users * sizeof *order);
    for (uint32_t i = 0; i < users; i++) order[i] = i + 1;
    for (uint32_t i = users - 1; i > 0; i--) {
        uint32_t j = random_bits() % (i + 1), other = order[i];
        order[i] = order[j];
        order[j] = other;
    }
}

int main(int count, char **arguments) {
    if (count != 10) return 2;
    mode = arguments[1];
    int auth_port = atoi(arguments[2]), acct_port = atoi(arguments[3]);
    secret = arguments[4];
    int slot_count = atoi(arguments[5]);
    double seconds = atof(arguments[6]);
    users = atoi(arguments[7]);
    sessions_each = atoi(arguments[8]);
    tag = arguments[9];
    latencies_us = malloc(MOST_LATENCIES * sizeof *latencies_us);
    shuffle_users();

    slot *slots = calloc(slot_count, sizeof *slots);
    int poll = epoll_create1(0);
    for (int i = 0; i < slot_count; i++) {
        slots[i].auth = open_socket(auth_port);
        slots[i].acct = open_socket(acct_port);
        slots[i].id = random_bits();
        struct epoll_event event = {.events = EPOLLIN};
        event.data.u64 = i * 2;
        epoll_ctl(poll, EPOLL_CTL_ADD, slots[i].auth, &event);
        event.data.u64 = i * 2 + 1;
        epoll_ctl(poll, EPOLL_CTL_ADD, slots[i].acct, &event);
    }

    uint64_t began_at = now(), ends_at = began_at + (uint64_t)(seconds * 1e9), looked_at = began_at;
    uint64_t last_at = began_at, resent = 0, counted = 0;
    for (int i = 0; i < slot_count; i++) next_operation(&slots[i]);
    for (bool busy = true; busy;) {
        struct epoll_event events[256];
        int ready = epoll_wait(poll, events, 256, 200);
        for (int i = 0; i < ready; i++)
            receive(&slots[events[i].data.u64 / 2], events[i].data.u64 & 1, ends_at);
        uint64_t time = now();
        if (operations > counted) {
            counted = operations;
            last_at = time;
        }
        if (ready > 0 && time - looked_at < 200000000ull) continue;
        looked_at = time;
        busy = false;
        for (int i = 0; i < slot_count; i++) {
            slot *s = &slots[i];
            if (s->done) continue;
            busy = true;
            if (time - s->sent_at <= RETRANSMIT_NS) continue;
            resent++;
            if (time > ends_at + GIVE_UP_NS) s->done = true;
            else transmit(s);
        }
    }
    double elapsed = (last_at - began_at) / 1e9;
    qsort(latencies_us, latencies, sizeof *latencies_us, compare);
    if (!latencies) {
        fprintf(stderr, "radload: no answer\n");
        return 1;
    }
    printf("{\"requests\": %lu, \"seconds\": %.3f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"resent\": %lu}\n", operations,
           elapsed, latencies_us[latencies / 2] / 1e3, latencies_us[latencies * 99 / 100] / 1e3, resent);
    return 0;
}
