/* A plugin for QEMU's system mode: guest instructions between marks, by the function they are in, on QEMU's plugin log.
 *
 * A mark is the instruction MOVW ip, 0x4544, see firmware.c. Each writes a line "edgedl N total=... NAME=..." with
 * what ran since the mark before. The declarations are those of plugin interface 1 (QEMU 7.2 to 8.2),
 * https://www.qemu.org/docs/master/devel/tcg-plugins.html; distributions ship no header for it. */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*translate_fn)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*execute_fn)(unsigned, void *);
enum { INLINE_ADD_U64, CB_NO_REGS = 0 };
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translate_fn);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, execute_fn, int, void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
extern const char *qemu_plugin_insn_symbol(const struct qemu_plugin_insn *);
extern void qemu_plugin_outs(const char *);

EXPORT int qemu_plugin_version = 1;

enum { MARK = 0x5c44f244, FUNCTIONS = 256 }; /* as the two halfwords lie in memory */
static struct {
    char name[64];
    uint64_t counted, marked;
} functions[FUNCTIONS] = {{.name = "other"}};
static int known = 1;
static unsigned marks;

static int index_of(const char *name)
{
    if (name == NULL || *name == 0) return 0;
    for (int i = 0; i < known; i++)
        if (strncmp(functions[i].name, name, sizeof functions[i].name - 1) == 0) return i;
    if (known == FUNCTIONS) return 0;
    strncpy(functions[known].name, name, sizeof functions[known].name - 1);
    return known++;
}

static void at_mark(unsigned cpu, void *data)
{
    (void)cpu, (void)data;
    char line[FUNCTIONS * 90];
    uint64_t total = 0;
    for (int i = 0; i < known; i++) total += functions[i].counted - functions[i].marked;
    int used = snprintf(line, sizeof line, "edgedl %u total=%" PRIu64, marks++, total);
    for (int i = 0; i < known; i++) {
        uint64_t here = functions[i].counted - functions[i].marked;
        if (here) used += snprintf(line + used, sizeof line - used, " %s=%" PRIu64, functions[i].name, here);
        functions[i].marked = functions[i].counted;
    }
    snprintf(line + used, sizeof line - used, "\n");
    qemu_plugin_outs(line);
}

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    size_t count = qemu_plugin_tb_n_insns(block);
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        uint32_t word = 0;
        if (qemu_plugin_insn_size(instruction) != sizeof word) continue;
        memcpy(&word, qemu_plugin_insn_data(instruction), sizeof word);
        if (word == MARK) qemu_plugin_register_vcpu_insn_exec_cb(instruction, at_mark, CB_NO_REGS, NULL);
    }
    int function = index_of(qemu_plugin_insn_symbol(qemu_plugin_tb_get_insn(block, 0)));
    qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &functions[function].counted, count);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    return 0;
}
