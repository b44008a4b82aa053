#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "digest.h"

int main(int argc, char **argv)
{
	std::map<uint64_t, std::string> words;
	std::vector<double> lengths;

	for (int i = 1; i < argc; i++) {
		std::string word = argv[i];
		std::sort(word.begin(), word.end());
		words[digest(word.data(), word.size())] = word;
		lengths.push_back(word.size());
	}
	for (const auto &[hash, word] : words)
		std::printf("%016llx %s\n", (unsigned long long)hash, word.c_str());
	std::printf("%.17g\n", mean(lengths.data(), lengths.size()));
	return 0;
}
