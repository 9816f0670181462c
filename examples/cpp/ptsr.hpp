// What a program in C++ needs beside a runtime: samples from a file, their normalisation, and the answer in words.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptsr {

constexpr double kFlat = 1e-6;  // io.normalisation.constants.flat in bundle.json

// Reads raw float32 samples (n, S, S, 3), one after the other: u, v in pixels, strain.
inline std::vector<std::vector<float>> read_samples(const std::string& path, std::size_t values) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("there is no file " + path);
    std::vector<std::vector<float>> samples;
    std::vector<float> one(values);
    while (file.read(reinterpret_cast<char*>(one.data()), static_cast<std::streamsize>(values * sizeof(float))))
        samples.push_back(one);
    if (file.gcount() != 0 || samples.empty())
        throw std::runtime_error(path + " must hold samples of " + std::to_string(values) + " float32");
    return samples;
}

inline double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    if (values.size() % 2) return *middle;
    return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

inline double variance(const std::vector<double>& values) {
    double mean = 0, sum = 0;
    for (double value : values) mean += value;
    mean /= static_cast<double>(values.size());
    for (double value : values) sum += (value - mean) * (value - mean);
    return sum / static_cast<double>(values.size());
}

// (S, S, 3) -> (3, S, S): io.normalisation.formula in bundle.json.
inline std::vector<float> normalise(const std::vector<float>& sample) {
    const std::size_t pixels = sample.size() / 3;
    std::vector<double> channels[3];
    for (std::size_t c = 0; c < 3; ++c)
        for (std::size_t i = 0; i < pixels; ++i) channels[c].push_back(sample[3 * i + c]);
    const double motion = std::sqrt((variance(channels[0]) + variance(channels[1])) / 2);
    const double spreads[3] = {motion, motion, std::sqrt(variance(channels[2]))};
    const double centres[3] = {median(channels[0]), median(channels[1]), 0};
    std::vector<float> input;
    for (std::size_t c = 0; c < 3; ++c)
        for (double value : channels[c])
            input.push_back(spreads[c] > kFlat ? static_cast<float>((value - centres[c]) / spreads[c]) : 0.0f);
    return input;
}

inline std::vector<std::string> split(const std::string& text) {
    std::istringstream stream(text);
    std::vector<std::string> words;
    for (std::string word; stream >> word;) words.push_back(word);
    return words;
}

// Prints the most probable class, then the probability of each.
inline void print_answer(const std::vector<std::string>& labels, const float* logits) {
    const std::size_t best =
        static_cast<std::size_t>(std::max_element(logits, logits + labels.size()) - logits);
    double sum = 0;
    for (std::size_t i = 0; i < labels.size(); ++i) sum += std::exp(double(logits[i]) - logits[best]);
    std::printf("%s", labels[best].c_str());
    for (std::size_t i = 0; i < labels.size(); ++i)
        std::printf(" %.6f", std::exp(double(logits[i]) - logits[best]) / sum);
    std::printf("\n");
}

}  // namespace ptsr
