// An exported ONNX file in C++: flow fields in, classes out.
//
//   g++ -std=c++17 -O2 examples/cpp/onnxruntime.cpp -I ORT/include -L ORT/lib -lonnxruntime -o classify
//   ./classify BUNDLE/ptsr-tiny-cpu-fp32-k49.onnx flow.bin
//
// ORT is a release of ONNX Runtime 1.12 or later, or its Debian package libonnxruntime-dev (-I /usr/include/onnxruntime).
// flow.bin holds raw float32 (n, S, S, 3), as `numpy.ndarray.tofile` writes them.
#include <onnxruntime_cxx_api.h>

#include "ptsr.hpp"

namespace {

// Labels are in the file's metadata, parted by blanks.
std::vector<std::string> read_labels(const Ort::Session& session) {
    Ort::AllocatorWithDefaultOptions allocator;
    Ort::ModelMetadata metadata = session.GetModelMetadata();
    char* text = nullptr;  // by the C interface, which is the same in all versions
    Ort::ThrowOnError(Ort::GetApi().ModelMetadataLookupCustomMetadataMap(
        metadata, allocator, "model_info labels", &text));
    if (text == nullptr) throw std::runtime_error("the model has no labels: it is none of ptsr-edge");
    const std::vector<std::string> labels = ptsr::split(text);
    allocator.Free(text);
    return labels;
}

void classify(const char* model, const char* flow) {
    Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "ptsr");
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    Ort::Session session(environment, model, options);
    const std::vector<std::string> labels = read_labels(session);
    const std::vector<int64_t> shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const char* input_name = "flow";
    const char* output_name = "logits";
    for (const auto& sample : ptsr::read_samples(flow, static_cast<std::size_t>(shape[1] * shape[2] * shape[3]))) {
        std::vector<float> values = ptsr::normalise(sample);
        const Ort::Value input =
            Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape.data(), shape.size());
        std::vector<Ort::Value> answer = session.Run(Ort::RunOptions{nullptr}, &input_name, &input, 1, &output_name, 1);
        ptsr::print_answer(labels, answer[0].GetTensorMutableData<float>());
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: %s MODEL.onnx FLOW.bin\n", argv[0]);
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
