// Runs an exported network as a stream, in C++, with libtorch and nothing else.
//
//   libtorch_runner model.stream.pt frames.bin
//
// model.stream.pt is written by `revedge export RUN --format torchscript -o DIR`. frames.bin holds float32 values in the
// order [T, C, H, W], already multiplied by the file's input scale. One line per step is printed: the step, and its
// logits as hexadecimal floats, so that no bit is lost. The last line names the class with the largest mean.

#include <ATen/Parallel.h>
#include <torch/script.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

[[noreturn]] void fail(const std::string& text) {
    std::fprintf(stderr, "libtorch_runner: error: %s\n", text.c_str());
    std::exit(1);
}

// The three sizes behind "input": {... "shape": [C, H, W]} in revedge.json; a full JSON reader is more than this needs.
std::vector<int64_t> input_shape(const std::string& json) {
    const auto input = json.find("\"input\"");
    const auto shape = input == std::string::npos ? input : json.find("\"shape\"", input);
    const auto open = shape == std::string::npos ? shape : json.find('[', shape);
    if (open == std::string::npos) fail("the model carries no revedge metadata; write it with revedge export");
    std::vector<int64_t> sizes;
    const char* at = json.c_str() + open + 1;
    for (int i = 0; i < 3; ++i) {
        char* end = nullptr;
        const long long size = std::strtoll(at, &end, 10);
        if (end == at || size < 1) fail("the revedge metadata is damaged; export the model again");
        sizes.push_back(size);
        at = end;
        while (*at == ',' || *at == ' ' || *at == '\n') ++at;
    }
    return sizes;
}

std::vector<float> read_frames(const char* path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fail(std::string(path) + " cannot be read");
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
    return values;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) fail("usage: libtorch_runner model.stream.pt frames.bin");
    at::set_num_threads(1);  // a step of a small network is too short to share
    torch::NoGradGuard no_grad;
    torch::jit::ExtraFilesMap extra{{"revedge.json", ""}};
    torch::jit::Module model;
    try {
        model = torch::jit::load(argv[1], torch::kCPU, extra);
    } catch (const c10::Error&) {
        fail(std::string(argv[1]) + " is not a TorchScript file, or is damaged");
    }
    if (!model.find_method("reset")) fail(std::string(argv[1]) + " keeps no states; use model.stream.pt");
    const auto shape = input_shape(extra["revedge.json"]);
    const int64_t size = shape[0] * shape[1] * shape[2];
    auto values = read_frames(argv[2]);
    const auto count = static_cast<int64_t>(values.size());
    if (count == 0 || count % size != 0) {
        fail("the frames hold " + std::to_string(count) + " values, no multiple of " + std::to_string(size));
    }
    const auto frames = torch::from_blob(values.data(), {count / size, 1, shape[0], shape[1], shape[2]});
    model.run_method("reset", static_cast<int64_t>(1));
    torch::Tensor total;
    for (int64_t t = 0; t < frames.size(0); ++t) {
        const auto logits = model.forward({frames[t]}).toTensor().contiguous();
        total = t == 0 ? logits.clone() : total + logits;
        std::printf("step %lld", static_cast<long long>(t));
        for (int64_t k = 0; k < logits.size(1); ++k) std::printf(" %a", logits.data_ptr<float>()[k]);
        std::printf("\n");
    }
    std::printf("class %lld\n", static_cast<long long>(total.argmax(1).item<int64_t>()));
    return 0;
}
