// An exported IR in C++: flow fields in, classes out.
//
//   g++ -std=c++17 -O2 examples/cpp/openvino.cpp -I OV/include -L OV/lib -lopenvino -o classify
//   ./classify BUNDLE/ptsr-tiny-openvino-fp32-k49.xml flow.bin
//
// OV is an archive of OpenVINO 2026.0 or later; the Python package holds headers and libraries, too.
// flow.bin holds raw float32 (n, S, S, 3), as `numpy.ndarray.tofile` writes them.
#include <openvino/openvino.hpp>

#include "ptsr.hpp"

namespace {

void classify(const char* path, const char* flow) {
    ov::Core core;
    const auto model = core.read_model(path);
    const auto labels = ptsr::split(model->get_rt_info<std::string>("model_info", "labels"));
    // No IR can say this by itself; of several types the last is what every CPU has.
    const auto types = ptsr::split(model->get_rt_info<std::string>("ptsr_edge", "inference_precision"));
    auto compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::Type(types.back())));
    auto request = compiled.create_infer_request();
    const auto input = request.get_tensor("flow");
    for (const auto& sample : ptsr::read_samples(flow, input.get_size())) {
        const std::vector<float> values = ptsr::normalise(sample);
        std::copy(values.begin(), values.end(), request.get_tensor("flow").data<float>());
        request.infer();
        ptsr::print_answer(labels, request.get_tensor("logits").data<float>());
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: %s MODEL.xml FLOW.bin\n", argv[0]);
        return 2;
    }
    try {
        classify(argv[1], argv[2]);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
