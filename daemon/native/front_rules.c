// SPDX-License-Identifier: Apache-2.0
/*
 * front_rules.c - when the native program must not be used
 *
 * A record of the store (maid/acceleration/records.py writes it) is a sequence
 * of strings, each ended by a 0: the version, rules of which the first letter
 * says the kind, and last "=" and the program. Rules are asked about the
 * arguments, the environment and the root file system; one that does not hold
 * is enough for QEMU. So is a record that is cut short, and a letter of a store
 * newer than this front. Nothing is changed here: what is to be changed for the
 * native program is listed for the caller.
 */
#include "front_calls.h"

#define VERSION "maid-native 1"

struct rule {
	char letter;
	const char *text;
	const char *more;	/* the second string, of the letters that have one */
};

/* Of rules of which one has to hold. */
enum alternative { NOT_ASKED, MISSED, MET };

static const char *after(const char *text)
{
	return text + length(text) + 1;
}

/*
 * Reads the rule at @at and returns what follows it, or NULL where there is none
 * or only half of one. The record's last byte, before @end, is a 0.
 */
static const char *next_rule(const char *at, const char *end, struct rule *rule)
{
	if (at == end || !*at)
		return NULL;
	rule->letter = *at;
	rule->text = at + 1;
	rule->more = NULL;
	at = after(at);
	if (rule->letter != 'p' && rule->letter != 'b')
		return at;
	if (at == end)
		return NULL;
	rule->more = at;
	return after(at);
}

/* Whether a path leads into the store, and by no detour out of it. */
static int in_store(const char *path)
{
	return starts(path, STORE "/") && !contains(path, "/../") && !ends(path, "/..");
}

static int exists(const char *path)
{
	struct status status;

	return call_stat(path, 0, &status);
}

/* Whether the ELF file @path has the build-id @wanted, in hexadecimal. */
static int has_build_id(const char *path, const char *wanted, unsigned char *buffer)
{
	char text[2 * ID_SIZE + 1];
	struct build_id id;

	build_id_of_path(path, buffer, &id);
	build_id_text(&id, text);
	return id.size && equal(text, wanted);
}

static const char *last_component(const char *path)
{
	const char *last = path;

	for (; *path; path++)
		if (*path == '/')
			last = path + 1;
	return last;
}

/* Whether the program is the file @path. */
static int is_file(const struct process *process, int file, const char *path)
{
	struct status own, other;

	return (file >= 0 ? call_fstat(file, &own) : call_stat(process->argv[1], 0, &own)) &&
	       call_stat(path, 0, &other) && own.device == other.device &&
	       own.inode == other.inode;
}

/* Whether the program was executed by a path that ends as @path does, and is that file. */
static int is_program(const struct process *process, int file, const char *path)
{
	return equal(last_component(process->argv[1]), last_component(path)) &&
	       is_file(process, file, path);
}

/* Whether one of @argv, after argv[0], is as the rule says. */
static int has_argument(char **argv, const struct rule *rule)
{
	for (char **argument = argv + 1; *argument; argument++) {
		const char *text = *argument;

		switch (rule->letter) {
		case 'a':
		case '+':
			if (starts(text, rule->text))
				return 1;
			break;
		case 'A':
			if (equal(text, rule->text))
				return 1;
			break;
		case 'c':
			if (contains(text, rule->text))
				return 1;
			break;
		case 'o':
			if (*text != '-' && *text != '+' && (*text < '0' || *text > '9'))
				break;
			for (const char *letter = rule->text; *letter; letter++)
				for (const char *c = text; *c; c++)
					if (*c == *letter)
						return 1;
			break;
		}
	}
	return 0;
}

/* Whether a variable called @name, or with that prefix when it ends in "*", is not empty. */
static int has_variable(char *const *envp, const char *name)
{
	for (; *envp; envp++) {
		const char *variable = *envp, *c = name, *text = value(*envp);

		while (*c && *c != '*' && *c == *variable)
			c++, variable++;
		if (((*c == '*' && !c[1]) || (!*c && *variable == '=')) && text && *text)
			return 1;
	}
	return 0;
}

/*
 * Whether the variable of @setting, "NAME=VALUE", is set, and to that value wherever
 * it is: of two in one environment, some programs take the first, others the last.
 */
static int has_setting(char *const *envp, const char *setting)
{
	int found = 0;

	for (; *envp; envp++) {
		const char *variable = *envp, *wanted = setting;

		while (*wanted && *wanted != '=' && *wanted == *variable)
			wanted++, variable++;
		if (*wanted != '=' || *variable != '=')
			continue;
		if (!equal(variable, wanted))
			return 0;
		found = 1;
	}
	return found;
}

static int is_utf8(const char *locale)
{
	const char *codeset = "utf8";

	while (*locale && *locale != '.' && *locale != '@')
		locale++;
	if (*locale++ != '.')
		return 0;
	for (; *codeset; codeset++, locale++) {
		if (*codeset == '8' && *locale == '-')
			locale++;
		if ((*locale | (*codeset == '8' ? 0 : 0x20)) != *codeset)
			return 0;
	}
	return !*locale || *locale == '@';
}

/* Whether every locale that is set is C or POSIX, or with @utf8 has that codeset. */
static int locale_is(char *const *envp, int utf8)
{
	for (; *envp; envp++) {
		const char *text = value(*envp);

		if (!text || !*text || !(starts(*envp, "LANG=") || starts(*envp, "LC_")))
			continue;
		if (!equal(text, "C") && !equal(text, "POSIX") && !(utf8 && is_utf8(text)))
			return 0;
	}
	return 1;
}

/*
 * Lists the replacement of every linker plug-in among the arguments: a native
 * program cannot load the foreign one. Returns 0 when one has no rule, the store
 * lacks its replacement, it stands in its option's argument, or there are too many.
 */
static int replace_plugins(const char *rules, const char *end, char **argv,
			   struct stand_in *wanted)
{
	for (char **argument = argv + 1; *argument; argument++) {
		const char *at = rules, *path = NULL;
		struct rule rule;

		if (starts(*argument, "-plugin=") || starts(*argument, "--plugin="))
			return 0;
		if (!equal(*argument, "-plugin") && !equal(*argument, "--plugin"))
			continue;
		if (!*++argument)
			return 0;
		while (!path && (at = next_rule(at, end, &rule)))
			if (rule.letter == 'p' && ends(*argument, rule.text))
				path = rule.more;
		if (!path || !exists(path) || wanted->replaced == MAX_REPLACED)
			return 0;
		wanted->replacement[wanted->replaced].slot = argument;
		wanted->replacement[wanted->replaced].text = path;
		wanted->replaced++;
	}
	return 1;
}

/* Whether the program's file has so many bytes, a decimal number. */
static int has_size(const struct process *process, int file, const char *text)
{
	struct status own;
	uint64_t size = 0;

	if (!*text || !(file >= 0 ? call_fstat(file, &own) : call_stat(process->argv[1], 0, &own)))
		return 0;
	for (; *text >= '0' && *text <= '9'; text++) {
		if (size > INT64_MAX / 10 - 1)
			return 0;
		size = size * 10 + (uint64_t)(*text - '0');
	}
	return !*text && own.size >= 0 && size == (uint64_t)own.size;
}

int rules_allow(const char *record, size_t size, const struct process *process, int file,
		unsigned char *buffer, struct stand_in *wanted)
{
	char **argv = process->argv + 2, *const *envp = process->envp;
	const char *end = record + size, *rules, *at;
	enum alternative some = NOT_ASKED, first = NOT_ASKED;
	int plugins = 0;
	struct rule rule;

	wanted->inserted = NULL;
	wanted->replaced = 0;
	if (!size || end[-1] || !equal(record, VERSION))
		return 0;
	rules = after(record);
	at = rules;
	while ((at = next_rule(at, end, &rule))) {
		switch (rule.letter) {
		case 'a':
		case 'A':
		case 'c':
		case 'o':
			if (has_argument(argv, &rule))
				return 0;
			break;
		case 'e':
			if (has_variable(envp, rule.text))
				return 0;
			break;
		case 'E':
			if (!has_setting(envp, rule.text))
				return 0;
			break;
		case 'l':
			if (!equal(rule.text, "8") && !equal(rule.text, "c"))
				return 0;
			if (!locale_is(envp, *rule.text == '8'))
				return 0;
			break;
		case 'x':
			if (exists(rule.text))
				return 0;
			break;
		case 'X':
			if (!exists(rule.text))
				return 0;
			break;
		case 'b':
			if (!has_build_id(rule.text, rule.more, buffer))
				return 0;
			break;
		case 's':
			if (!is_program(process, file, rule.text))
				return 0;
			break;
		case 'S':
			if (!is_file(process, file, rule.text))
				return 0;
			break;
		case 'z':
			if (!has_size(process, file, rule.text))
				return 0;
			break;
		case 'm':
			if (*rule.text || !argv[1])
				return 0;
			break;
		case '+':
			if (some != MET)
				some = has_argument(argv, &rule) ? MET : MISSED;
			break;
		case '1':
			if (first != MET)
				first = argv[1] && equal(argv[1], rule.text) ? MET : MISSED;
			break;
		case 'p':
			if (!in_store(rule.more))
				return 0;
			plugins = 1;
			break;
		case 'i':
			if (wanted->inserted)
				return 0;
			wanted->inserted = rule.text;
			break;
		case '=':
			wanted->program = rule.text;
			return at == end && in_store(rule.text) && some != MISSED &&
			       first != MISSED &&
			       (!plugins || replace_plugins(rules, end, argv, wanted));
		default:
			return 0;
		}
	}
	return 0;
}

/* Whether @variable, of the environment, means that QEMU has to run the program. */
static int forbids(const char *variable)
{
	const char *text = value(variable);

	if (!text)
		return 0;
	/* QEMU's own: set at all is enough for some of them, such as QEMU_STRACE. */
	if (starts(variable, "QEMU_"))
		return 1;
	/*
	 * What the foreign loader and C library obey and the native ones could not
	 * (libraries of the foreign machine), or would to another effect. Only the
	 * linker reads LD_RUN_PATH.
	 */
	if (starts(variable, "LD_"))
		return *text && !starts(variable, "LD_RUN_PATH=");
	if (starts(variable, "GLIBC_TUNABLES=") || starts(variable, "GCONV_PATH=") ||
	    starts(variable, "LOCPATH="))
		return *text;
	return starts(variable, "MAID_ACCELERATE=") &&
	       (equal(text, "0") || equal(text, "off") || equal(text, "no"));
}

int environment_allows(char *const *envp)
{
	for (; *envp; envp++)
		if (forbids(*envp))
			return 0;
	return 1;
}
