// Checks an installed library: two touching discs are two instances, a frame is resized, and invalid arguments are errors. Prints "ok".
#include <tfiseg.hpp>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

constexpr tfiseg::Size kGrid{120, 180};
constexpr uint8_t kClass = 3;

std::vector<uint8_t> two_discs() {
    std::vector<uint8_t> map(kGrid.area());
    for (int32_t y = 0; y < kGrid.height; ++y)
        for (int32_t x = 0; x < kGrid.width; ++x)
            for (const int32_t center : {60, 110}) {
                const int32_t dx = x - center, dy = y - 60;
                if (dx * dx + dy * dy < 30 * 30) map[size_t(y * kGrid.width + x)] = kClass;
            }
    return map;
}

void expect(bool condition, const char *message) {
    if (condition) return;
    std::fprintf(stderr, "check_tfiseg: %s\n", message);
    std::exit(1);
}

template <class Call>
void expect_error(const Call &call, const char *part) {
    try {
        call();
    } catch (const tfiseg::Error &error) {
        expect(std::string(error.what()).find(part) != std::string::npos, error.what());
        return;
    }
    expect(false, "an error was expected");
}

}  // namespace

int main() {
    expect(tfiseg_api_version() == TFISEG_API_VERSION, "header and library are of different versions");
    const std::vector<uint8_t> map = two_discs();
    tfiseg::Maps maps;
    maps.class_map = map;
    maps.grid = kGrid;

    tfiseg::Clusterer clusterer;
    const tfiseg::Result result = clusterer.cluster(maps);
    const std::vector<tfiseg::Instance> found = result.instances();
    expect(found.size() == 2, "two touching discs are two instances");
    expect(found[0].class_id == kClass && found[1].class_id == kClass && !found[0].touches_edge, "instances have the class of the discs and are inside the image");
    expect(result.label_map()[60 * 180 + 40] == 1 && result.label_map()[60 * 180 + 130] == 2 && result.label_map()[0] == 0, "instances are numbered in raster order");

    tfiseg::Settings components;
    components.split = 0.0;
    expect(tfiseg::Clusterer(components).cluster(maps).count() == 1, "both discs are one connected component");
    components.things = {7};
    expect(tfiseg::Clusterer(components).cluster(maps).count() == 0, "other classes are not countable");

    tfiseg::Settings invalid;
    invalid.split = 2.0;
    expect_error([&] { tfiseg::Clusterer c(invalid); }, "ratios lie in 0..1");
    invalid = {};
    invalid.merge_rule.resize(12);
    expect_error([&] { tfiseg::Clusterer c(invalid); }, "got 12");
    invalid = {};
    invalid.max_instances = 0;
    expect_error([&] { tfiseg::Clusterer(invalid).cluster(maps); }, "cannot be clustered");
    maps.grid = {120, 179};
    expect_error([&] { clusterer.cluster(maps); }, "class_map has 21600 values, expected 21480");

    const std::vector<uint8_t> frame(2 * 4 * 3, 100);
    std::vector<float> fitted(1 * 2 * 3);
    tfiseg::fit_frame(frame, {2, 4}, fitted, {1, 2});
    expect(fitted[0] == 100.0f && fitted[5] == 100.0f, "a frame of one color keeps it");
    // without CUDA, for that reason; with it, because no pointer is given
    expect_error([] { tfiseg::enqueue_fit_frame(nullptr, {2, 4}, nullptr, {1, 2}, nullptr); }, "");
    std::puts("ok");
    return 0;
}
