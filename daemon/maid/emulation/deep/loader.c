/*
 * A dynamic loader, as small as one can be that still does a loader's work: it relocates itself (musl's own
 * first stage), maps the shared libraries that the program names, each segment from its place in the file,
 * resolves symbols between program and libraries, writes the relocations, runs the libraries' constructors
 * and jumps to the program with the stack as the kernel made it.
 *
 * It is here because a compiler without a sysroot has no libc.so to link or run with. The machine's part
 * (entry, relocation numbers, jump) is musl's, from the headers that come with zig: dlstart.c, crt_arch.h,
 * reloc.h, syscall_arch.h. Left out: thread-local storage, copy relocations, symbol versions, dlopen and
 * search paths: a library lies at / under the name the program has for it.
 */

#define SYSCALL_NO_TLS 1
#include "dlstart.c"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "syscall_arch.h"

#ifndef SYSCALL_MMAP2_UNIT
#define SYSCALL_MMAP2_UNIT 4096ULL
#endif

/* Register 0 in `br` means no jump at all: the address may be in any register but that ("a", not "r"). */
#ifdef __s390x__
#undef CRTJMP
#define CRTJMP(pc, sp) \
	__asm__ __volatile__("lgr %%r15,%1; br %0" : : "a"(pc), "a"(sp) : "memory")
#endif

#define OBJECTS 4
#define HEADERS 16

struct object {
	size_t base, *dynamic, dyn[DYN_CNT];
	size_t mips_gotsym, mips_symtabno, mips_local_gotno;
	const Sym *symbols;
	const char *strings;
};

static struct object objects[OBJECTS];
static int count;

/* The compiler may call these for a loop or an initialisation; nobody else provides them. */
hidden void *memset(void *to, int byte, size_t size)
{
	volatile unsigned char *p = to;
	while (size--)
		*p++ = byte;
	return to;
}

hidden void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
	volatile unsigned char *p = to;
	const unsigned char *q = from;
	while (size--)
		*p++ = *q++;
	return to;
}

static size_t length(const char *text)
{
	size_t n = 0;
	while (text[n])
		n++;
	return n;
}

static int equal(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static _Noreturn void fail(const char *what, const char *name)
{
	__syscall3(SYS_write, 1, (long)"loader: ", 8);
	__syscall3(SYS_write, 1, (long)what, length(what));
	__syscall3(SYS_write, 1, (long)name, length(name));
	__syscall3(SYS_write, 1, (long)"\n", 1);
	for (;;)
		__syscall1(SYS_exit_group, 1);
}

static size_t map(size_t at, size_t size, int protection, int flags, int fd, size_t offset)
{
#ifdef SYS_mmap2
	size_t result = __syscall6(SYS_mmap2, at, size, protection, flags, fd,
				   offset / SYSCALL_MMAP2_UNIT);
#else
	size_t result = __syscall6(SYS_mmap, at, size, protection, flags, fd, offset);
#endif
	if (result > -4096UL)
		fail("mmap failed", "");
	return result;
}

static void take_up(struct object *o, size_t base, size_t *dynamic)
{
	o->base = base;
	o->dynamic = dynamic;
	for (size_t *d = dynamic; d[0]; d += 2) {
		if (d[0] < DYN_CNT)
			o->dyn[d[0]] = d[1];
		else if (d[0] == DT_MIPS_GOTSYM)
			o->mips_gotsym = d[1];
		else if (d[0] == DT_MIPS_SYMTABNO)
			o->mips_symtabno = d[1];
		else if (d[0] == DT_MIPS_LOCAL_GOTNO)
			o->mips_local_gotno = d[1];
	}
	o->symbols = (void *)(base + o->dyn[DT_SYMTAB]);
	o->strings = (void *)(base + o->dyn[DT_STRTAB]);
	if (!o->dyn[DT_HASH])
		fail("no DT_HASH in an object", "");
}

static void load(struct object *o, const char *name, size_t page)
{
	char path[64] = "/";
	unsigned char head[sizeof(Ehdr) + HEADERS * sizeof(Phdr)];
	Ehdr *header = (void *)head;
	size_t low = -1, high = 0, *dynamic = 0, base;
	int fd;

	if (length(name) > 60)
		fail("name too long: ", name);
	memcpy(path + 1, name, length(name) + 1);
	fd = __syscall4(SYS_openat, AT_FDCWD, (long)path, O_RDONLY, 0);
	if (fd < 0)
		fail("cannot open ", path);
	if (__syscall3(SYS_read, fd, (long)head, sizeof head) < (long)sizeof head)
		fail("cannot read ", path);
	if (header->e_phnum > HEADERS || header->e_phoff != sizeof(Ehdr))
		fail("odd program headers in ", path);

	const Phdr *first = (void *)(head + sizeof(Ehdr)), *end = first + header->e_phnum;
	for (const Phdr *p = first; p < end; p++) {
		if (p->p_type != PT_LOAD)
			continue;
		if (p->p_vaddr < low)
			low = p->p_vaddr & -page;
		if (p->p_vaddr + p->p_memsz > high)
			high = (p->p_vaddr + p->p_memsz + page - 1) & -page;
	}
	/* One reservation for the whole, then every segment in its place: the distances must hold. */
	base = map(0, high - low, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) - low;
	for (const Phdr *p = first; p < end; p++) {
		if (p->p_type == PT_DYNAMIC)
			dynamic = (void *)(base + p->p_vaddr);
		if (p->p_type != PT_LOAD)
			continue;
		int protection = (p->p_flags & PF_R ? PROT_READ : 0) |
				 (p->p_flags & PF_W ? PROT_WRITE : 0) |
				 (p->p_flags & PF_X ? PROT_EXEC : 0);
		size_t start = (base + p->p_vaddr) & -page, skew = p->p_vaddr & (page - 1);
		size_t file_end = base + p->p_vaddr + p->p_filesz;
		size_t memory_end = base + p->p_vaddr + p->p_memsz;
		size_t mapped = (file_end + page - 1) & -page;
		map(start, p->p_filesz + skew, protection, MAP_PRIVATE | MAP_FIXED, fd,
		    p->p_offset - skew);
		if (memory_end > file_end && p->p_flags & PF_W)
			memset((void *)file_end, 0,
			       (memory_end < mapped ? memory_end : mapped) - file_end);
		if (memory_end > mapped)
			map(mapped, memory_end - mapped, protection,
			    MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
	}
	__syscall1(SYS_close, fd);
	if (!dynamic)
		fail("no PT_DYNAMIC in ", path);
	take_up(o, base, dynamic);
}

static size_t find(const char *name)
{
	for (int i = 0; i < count; i++) {
		const struct object *o = &objects[i];
		/* DT_HASH's second word is the number of symbols; LLD writes 32 bits, on s390x too. */
		size_t n = ((uint32_t *)(o->base + o->dyn[DT_HASH]))[1];
		for (size_t s = 1; s < n; s++)
			if (o->symbols[s].st_shndx && (o->symbols[s].st_info & 15) <= STT_FUNC &&
			    equal(o->strings + o->symbols[s].st_name, name))
				return o->base + o->symbols[s].st_value;
	}
	fail("undefined symbol ", name);
}

static size_t symbol(const struct object *o, size_t index)
{
	const Sym *s = &o->symbols[index];
	/* A local symbol, or a hidden one, binds within its object. */
	if (s->st_shndx && s->st_info >> 4 == STB_LOCAL)
		return o->base + s->st_value;
	return find(o->strings + s->st_name);
}

static void relocate(const struct object *o, size_t table, size_t size, size_t stride)
{
	for (size_t *rel = (void *)(o->base + table); size; rel += stride, size -= stride * sizeof *rel) {
		size_t *at = (void *)(o->base + rel[0]);
		int type = R_TYPE(rel[1]);
		size_t index = R_SYM(rel[1]);
		size_t addend = stride == 3 ? rel[2] : type == REL_GOT || type == REL_PLT ? 0 : *at;

		if (type == REL_NONE)
			continue;
		else if (type == REL_RELATIVE || (type == REL_SYM_OR_REL && !index))
			*at = o->base + addend;
		else if (type == REL_SYMBOLIC || type == REL_GOT || type == REL_PLT ||
			 type == REL_SYM_OR_REL)
			*at = symbol(o, index) + addend;
		else
			fail("unknown relocation in an object", "");
	}
}

static void relocate_all(const struct object *o, int itself)
{
	if (NEED_MIPS_GOT_RELOCS) {
		size_t *got = (void *)(o->base + o->dyn[DT_PLTGOT]);
		if (!itself)
			for (size_t i = 0; i < o->mips_local_gotno; i++)
				got[i] += o->base;
		got += o->mips_local_gotno;
		for (size_t i = o->mips_gotsym; i < o->mips_symtabno; i++)
			*got++ = symbol(o, i);
	}
	relocate(o, o->dyn[DT_JMPREL], o->dyn[DT_PLTRELSZ], o->dyn[DT_PLTREL] == DT_RELA ? 3 : 2);
	relocate(o, o->dyn[DT_REL], o->dyn[DT_RELSZ], 2);
	relocate(o, o->dyn[DT_RELA], o->dyn[DT_RELASZ], 3);
}

/* Called by musl's first stage, when the loader's own relative relocations are written. */
hidden void __dls2(unsigned char *base, size_t *sp)
{
	size_t aux[AUX_CNT] = { 0 }, *p = sp + 1 + *sp + 1, *dynamic = 0, program = 0;

	(void)base;
	while (*p)
		p++;
	for (p++; *p; p += 2)
		if (*p < AUX_CNT)
			aux[*p] = p[1];
	const Phdr *first = (void *)aux[AT_PHDR], *end = first + aux[AT_PHNUM];
	for (const Phdr *h = first; h < end; h++)
		if (h->p_type == PT_PHDR)
			program = aux[AT_PHDR] - h->p_vaddr;
	for (const Phdr *h = first; h < end; h++)
		if (h->p_type == PT_DYNAMIC)
			dynamic = (void *)(program + h->p_vaddr);
	if (!dynamic)
		fail("the kernel passed no program with a dynamic section", "");
	take_up(&objects[count++], program, dynamic);
	for (int i = 0; i < count; i++)
		for (size_t *d = objects[i].dynamic; d[0]; d += 2) {
			if (d[0] != DT_NEEDED)
				continue;
			if (count == OBJECTS)
				fail("too many libraries", "");
			load(&objects[count], objects[i].strings + d[1], aux[AT_PAGESZ]);
			count++;
		}
	for (int i = count; i--;)
		relocate_all(&objects[i], 0);
	for (int i = count; --i > 0;) {
		size_t n = objects[i].dyn[DT_INIT_ARRAYSZ] / sizeof(size_t);
		size_t *start = (void *)(objects[i].base + objects[i].dyn[DT_INIT_ARRAY]);
		for (size_t c = 0; c < n; c++)
			((void (*)(void))start[c])();
	}
	CRTJMP((void *)aux[AT_ENTRY], sp);
	for (;;)
		;
}
