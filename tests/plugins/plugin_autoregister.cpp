// A program with a plugin registry like TensorRT's, which only opens libtfiseg_plugin_autoregister.so.
//     plugin_autoregister LIBRARY [VERSION]
// VERSION: return value of getInferLibVersion, for example 100300 for TensorRT 10.3.0. Prints the registered creators, one per line.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

int32_t library_version = 100300;

class Registry final : public IPluginRegistry {
  public:
    bool registerCreator(IPluginCreatorInterface &creator, AsciiChar const *const plugin_namespace) noexcept override {
        namespaces.emplace_back(plugin_namespace);
        creators.push_back(&creator);
        return true;
    }
    IPluginCreatorInterface *const *getAllCreators(int32_t *const count) const noexcept override {
        *count = int32_t(creators.size());
        return creators.data();
    }
    // only in later versions, so without `override`
    virtual IPluginCreatorInterface *const *getAllCreatorsRecursive(int32_t *const count) noexcept { return getAllCreators(count); }
    IPluginCreatorInterface *getCreator(AsciiChar const *const name, AsciiChar const *const version, AsciiChar const *const plugin_namespace) noexcept override {
        for (size_t k = 0; k < creators.size(); ++k) {
            auto *creator = static_cast<IPluginCreatorV3One *>(creators[k]);
            if (!std::strcmp(creator->getPluginName(), name) && !std::strcmp(creator->getPluginVersion(), version) && namespaces[k] == plugin_namespace)
                return creators[k];
        }
        return nullptr;
    }
    bool deregisterCreator(IPluginCreatorInterface const &) noexcept override { return false; }
    bool registerCreator(IPluginCreator &, AsciiChar const *const) noexcept override { return false; }
    IPluginCreator *const *getPluginCreatorList(int32_t *const) const noexcept override { return nullptr; }
    IPluginCreator *getPluginCreator(AsciiChar const *const, AsciiChar const *const, AsciiChar const *const) noexcept override { return nullptr; }
    bool deregisterCreator(IPluginCreator const &) noexcept override { return false; }
    void setErrorRecorder(IErrorRecorder *const) noexcept override {}
    IErrorRecorder *getErrorRecorder() const noexcept override { return nullptr; }
    bool isParentSearchEnabled() const override { return false; }
    void setParentSearchEnabled(bool const) override {}
    PluginLibraryHandle loadLibrary(AsciiChar const *) noexcept override { return nullptr; }
    void deregisterLibrary(PluginLibraryHandle) noexcept override {}
    IPluginResource *acquirePluginResource(AsciiChar const *, IPluginResource *) noexcept override { return nullptr; }
    int32_t releasePluginResource(AsciiChar const *) noexcept override { return 0; }

    std::vector<std::string> namespaces;
    std::vector<IPluginCreatorInterface *> creators;
};

Registry registry;

}  // namespace

extern "C" __attribute__((visibility("default"))) IPluginRegistry *getPluginRegistry() noexcept { return &registry; }
extern "C" __attribute__((visibility("default"))) int32_t getInferLibVersion() noexcept { return library_version; }

int main(int argc, char **argv) {
    if (argc > 2) library_version = std::atoi(argv[2]);
    for (int twice = 0; twice < 2; ++twice) {
        void *library = dlopen(argv[1], RTLD_LAZY);
        if (!library) {
            std::fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        dlclose(library);  // the library is not unloaded, because the registry has a pointer into it
    }
    for (size_t k = 0; k < registry.creators.size(); ++k) {
        auto *creator = static_cast<IPluginCreatorV3One *>(registry.creators[k]);
        IPluginV3 *plugin = creator->createPlugin("node", nullptr, TensorRTPhase::kBUILD);
        std::printf("%s::%s %s, %s\n", registry.namespaces[k].c_str(), creator->getPluginName(), creator->getPluginVersion(),
                    plugin ? "creates plugins" : "creates none");
        delete plugin;
    }
    return 0;
}
