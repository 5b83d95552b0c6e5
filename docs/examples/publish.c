/* Signs one body temperature as JSON and publishes it: C with libmosquitto and OpenSSL.
 *
 *   cc -Wall -Wextra -o publish publish.c -lmosquitto -lcrypto
 *   publish HOST PORT CA_FILE USER PASSWORD_FILE GATEWAY DEVICE KEY_FILE BOOT SEQ CELSIUS
 * Prints what the gateway answered; exits 0 if it has the reading, 1 if it refused it, 75 if it is to be sent again.
 * A real device keeps BOOT and SEQ in flash, and the message until it is answered (docs/DEVICES.md). */
#include <mosquitto.h>
#include <mqtt_protocol.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define DOMAIN "vitalfog/reading/v1\n"
static char message[2048], topic[256];
static int answer = -1; /* the reason code, and the sentence with it */
static char *sentence;

static long long now_ms(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* What is signed is the domain, a line feed, and exactly the text that is sent. */
static int sign(char **a) {
    char text[1024], base64[128];
    unsigned char signature[64];
    size_t size = sizeof signature;
    int length = snprintf(text, sizeof text, DOMAIN "{\"v\":1,\"device\":\"%s\",\"boot\":\"%s\",\"seq\":%s,\"up_ms\":%lld,"
        "\"wall\":%lld,\"time_quality\":\"synced\",\"observations\":[{\"code\":\"8310-5\",\"value\":%s,\"unit\":\"Cel\"}]}",
        a[7], a[9], a[10], now_ms(CLOCK_BOOTTIME), now_ms(CLOCK_REALTIME), a[11]);
    FILE *file = fopen(a[8], "r");
    EVP_PKEY *key = file ? PEM_read_PrivateKey(file, NULL, NULL, NULL) : NULL;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    if (length >= (int)sizeof text || !key || EVP_DigestSignInit(context, NULL, NULL, NULL, key) != 1 ||
        EVP_DigestSign(context, signature, &size, (unsigned char *)text, length) != 1)
        return 0;
    EVP_EncodeBlock((unsigned char *)base64, signature, (int)size);
    EVP_MD_CTX_free(context), EVP_PKEY_free(key), fclose(file);
    snprintf(message, sizeof message, "{\"reading\":%s,\"signature\":\"%s\"}", text + strlen(DOMAIN), base64);
    return 1;
}

static void on_connect(struct mosquitto *client, void *data, int reason, int flags, const mosquitto_property *about) {
    (void)data, (void)flags, (void)about;
    if (reason == 0)
        mosquitto_publish_v5(client, NULL, topic, (int)strlen(message), message, 1, false, NULL);
    else
        answer = reason, mosquitto_disconnect(client);
}

static void on_publish(struct mosquitto *client, void *data, int id, int reason, const mosquitto_property *about) {
    (void)data, (void)id;
    mosquitto_property_read_string(about, MQTT_PROP_REASON_STRING, &sentence, false);
    answer = reason, mosquitto_disconnect(client);
}

int main(int count, char **a) {
    char password[256] = "";
    FILE *file = count == 12 ? fopen(a[5], "r") : NULL;
    if (!file || !fgets(password, sizeof password, file) || !sign(a))
        return fprintf(stderr, "usage: see the first lines of publish.c; the key must be a PEM file\n"), 64;
    fclose(file), password[strcspn(password, "\r\n")] = 0;
    snprintf(topic, sizeof topic, "vitalfog/v1/%s/%s/reading", a[6], a[7]);
    mosquitto_lib_init();
    struct mosquitto *client = mosquitto_new(a[4], true, NULL);
    mosquitto_int_option(client, MOSQ_OPT_PROTOCOL_VERSION, MQTT_PROTOCOL_V5);
    mosquitto_username_pw_set(client, a[4], password), mosquitto_tls_set(client, a[3], NULL, NULL, NULL, NULL);
    mosquitto_connect_v5_callback_set(client, on_connect), mosquitto_publish_v5_callback_set(client, on_publish);
    if (mosquitto_connect(client, a[1], atoi(a[2]), 30) == MOSQ_ERR_SUCCESS)
        for (time_t end = time(NULL) + 15; answer < 0 && time(NULL) < end && mosquitto_loop(client, 200, 1) == 0;) {}
    mosquitto_destroy(client);
    const char *said = sentence ? sentence : mosquitto_reason_string(answer);
    answer < 0 ? printf("no answer\n") : printf("0x%02x %s\n", answer, said);
    return answer == 0x00 || answer == 0x10 ? 0 : answer == 0x87 || answer == 0x90 || answer == 0x99 ? 1 : 75;
}
