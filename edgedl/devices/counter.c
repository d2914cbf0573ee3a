/* A QEMU user-mode plugin: guest instructions between marks, by class, on QEMU's plugin log.
 *
 * A mark is getpriority(0, 0x4544 << 16 | n), see `count` in agent.py. Each writes a line "edgedl N total=..."
 * with what ran since the mark before. The declarations are those of plugin interface 1 (QEMU 7.2 to 8.2),
 * https://www.qemu.org/docs/master/devel/tcg-plugins.html; distributions ship no header for it.
 * Classes are the main encoding groups of A64, Arm Architecture Reference Manual DDI 0487, section C4.1. */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct {
    const char *target_name;
    struct {
        int min;
        int cur;
    } version;
    bool system_emulation;
} qemu_info_t; /* its beginning */
typedef void (*translate_fn)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*syscall_fn)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t, uint64_t, uint64_t);
enum { INLINE_ADD_U64 };
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translate_fn);
extern void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_fn);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern void qemu_plugin_outs(const char *);

EXPORT int qemu_plugin_version = 1;

enum { TOTAL, SIMD_FP, LOAD_STORE, BRANCH, IMMEDIATE, REGISTER, OTHER, CLASSES };
static const char *const names[] = {"total", "simd_fp", "load_store", "branch", "immediate", "register", "other"};
static uint64_t counted[CLASSES], marked[CLASSES];
static bool is_a64;
static int64_t getpriority_number;

static int class_of(uint32_t word)
{
    unsigned op0 = word >> 25 & 15;
    if ((op0 & 7) == 7) return SIMD_FP;
    if ((op0 & 5) == 4) return LOAD_STORE;
    if ((op0 & 14) == 10) return BRANCH;
    if ((op0 & 14) == 8) return IMMEDIATE;
    if ((op0 & 7) == 5) return REGISTER;
    return OTHER;
}

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    uint64_t here[CLASSES] = {0};
    here[TOTAL] = qemu_plugin_tb_n_insns(block);
    for (size_t i = 0; is_a64 && i < here[TOTAL]; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        here[class_of(word)]++;
    }
    for (int k = 0; k < CLASSES; k++)
        if (here[k]) qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &counted[k], here[k]);
}

static void at_syscall(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t which, uint64_t who, uint64_t a3,
                       uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)cpu, (void)which, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != getpriority_number || (who & 0xffffffff) >> 16 != 0x4544) return;
    char line[400];
    int used = snprintf(line, sizeof line, "edgedl %u", (unsigned)(who & 0xffff));
    for (int k = 0; k < (is_a64 ? CLASSES : 1); k++)
        used += snprintf(line + used, sizeof line - used, " %s=%" PRIu64, names[k], counted[k] - marked[k]);
    snprintf(line + used, sizeof line - used, "\n");
    qemu_plugin_outs(line);
    memcpy(marked, counted, sizeof marked);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    (void)argc, (void)argv;
    is_a64 = strcmp(info->target_name, "aarch64") == 0;
    getpriority_number = is_a64 ? 141 : 96;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    qemu_plugin_register_vcpu_syscall_cb(id, at_syscall);
    return 0;
}
