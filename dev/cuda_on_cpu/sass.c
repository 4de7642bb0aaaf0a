// sass.c: owns the counting of instructions in a cubin, the machine code that ptxas makes for one kind of GPU.
//
//   sass FILE.cubin       one row a kernel: its name as the linker knows it, instructions, and how many are HMMA or HGMMA (tensor cores, bf16), LDSM (ldmatrix),
//                         LDGSTS (cp.async), LDL and STL (registers spilled to local memory), BAR (barriers)
// A cubin is an ELF file with a section .text.NAME for each kernel. From capability 7.0 on an instruction takes 16 bytes, and the low 12 bits of
// its first word are its operation (bits 9 to 11: the kind of its operands), as nvdisasm shows them for code of every kind in this project.
// Exit 1: not such a file. No tool of the CUDA toolkit is needed.
#include <elf.h>     // Elf64_Ehdr
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INSTRUCTION = 16 };
static const struct { const char *name; uint16_t operations[3]; } counted[] = {
  {"HMMA", {0x23c, 0x9f0}}, {"LDSM", {0x83b}}, {"LDGSTS", {0xfae, 0x9ae}}, {"LDL", {0x983}}, {"STL", {0x387}}, {"BAR", {0xb1d}},
};
enum { COUNTED = sizeof counted / sizeof *counted };

static void refuse(const char *path, const char *why) { fprintf(stderr, "sass: %s: %s\n", path, why); exit(1); }

static void count(const char *kernel, const unsigned char *code, size_t bytes) {
  long found[COUNTED] = {0};
  for (size_t at = 0; at + INSTRUCTION <= bytes; at += INSTRUCTION) {
    const unsigned operation = (code[at] | code[at + 1] << 8) & 0xfff;
    for (int c = 0; c < COUNTED; c++) for (int o = 0; o < 3; o++) found[c] += counted[c].operations[o] && operation == counted[c].operations[o];
  }
  printf("%s\t%zu", kernel, bytes / INSTRUCTION);
  for (int c = 0; c < COUNTED; c++) printf("\t%ld", found[c]);
  printf("\n");
}

int main(int argc, char **argv) {
  if (argc != 2) { fprintf(stderr, "usage: sass FILE.cubin\n"); return 2; }
  FILE *f = fopen(argv[1], "rb");
  if (!f || fseek(f, 0, SEEK_END)) refuse(argv[1], "cannot be read");
  const long size = ftell(f);
  unsigned char *file = malloc(size > 0 ? (size_t)size : 1);
  rewind(f);
  if (!file || size < (long)sizeof(Elf64_Ehdr) || fread(file, 1, (size_t)size, f) != (size_t)size) refuse(argv[1], "cannot be read, or is shorter than an ELF header");
  const Elf64_Ehdr *header = (const Elf64_Ehdr *)file;
  if (memcmp(header->e_ident, ELFMAG, SELFMAG) || header->e_ident[EI_CLASS] != ELFCLASS64) refuse(argv[1], "is no 64-bit ELF file");
  const uint64_t n = (uint64_t)size;
  if (header->e_shentsize != sizeof(Elf64_Shdr) || header->e_shoff > n || (uint64_t)header->e_shnum * sizeof(Elf64_Shdr) > n - header->e_shoff || header->e_shstrndx >= header->e_shnum)
    refuse(argv[1], "its table of sections lies outside");
  const Elf64_Shdr *sections = (const Elf64_Shdr *)(file + header->e_shoff), *names = &sections[header->e_shstrndx];
  if (names->sh_offset > n || names->sh_size > n - names->sh_offset || !names->sh_size || file[names->sh_offset + names->sh_size - 1]) refuse(argv[1], "its table of names lies outside");
  printf("kernel\tinstructions");
  for (int c = 0; c < COUNTED; c++) printf("\t%s", counted[c].name);
  printf("\n");
  for (int i = 0; i < header->e_shnum; i++) {
    const Elf64_Shdr *s = &sections[i];
    if (s->sh_name >= names->sh_size || s->sh_offset > n || (s->sh_type != SHT_NOBITS && s->sh_size > n - s->sh_offset)) refuse(argv[1], "a section lies outside");
    const char *name = (const char *)file + names->sh_offset + s->sh_name;
    if (!strncmp(name, ".text.", 6)) count(name + 6, file + s->sh_offset, s->sh_size);
  }
  free(file);
  fclose(f);
  return 0;
}
