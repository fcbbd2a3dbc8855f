// Registers the operator's creator with TensorRT when this library is opened, for programs that only open plugin libraries: trtexec
// --staticPlugins=FILE, Triton's --backend-config=tensorrt,plugins=FILE, LD_PRELOAD.
//
// Programs that call IPluginRegistry::loadLibrary need libtfiseg_plugin.so: that call fails if a creator is registered already. This
// library links nothing of TensorRT. It looks for the TensorRT that the program has loaded.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>

extern "C" nvinfer1::IPluginCreatorInterface *const *getCreators(int32_t &count);  // tensorrt_plugin.cpp

namespace {

constexpr char kNamespace[] = "tfiseg";
// A program may load TensorRT where RTLD_DEFAULT does not look, as Triton does with its backends.
constexpr const char *kLibraries[] = {"libnvinfer.so.10", "libnvinfer.so.11", "libnvinfer.so", "libtensorrt_rtx.so.1"};

template <class Function>
Function *loaded_function(const char *name) {
    void *symbol = dlsym(RTLD_DEFAULT, name);
    for (const char *file : kLibraries) {
        if (symbol) break;
        if (void *library = dlopen(file, RTLD_LAZY | RTLD_NOLOAD)) symbol = dlsym(library, name);
    }
    return reinterpret_cast<Function *>(symbol);
}

__attribute__((constructor)) void register_creators() {
    const char *self = "tfiseg: libtfiseg_plugin_autoregister.so";
    auto *version = loaded_function<int32_t()>("getInferLibVersion");
    auto *get_registry = loaded_function<nvinfer1::IPluginRegistry *()>("getPluginRegistry");
    if (!version || !get_registry) {
        std::fprintf(stderr, "%s found no TensorRT in this process and registered nothing. Open libnvinfer first.\n", self);
        return;
    }
    // the registry's table of functions changes with the major version
    const int32_t major = version() / 10000;
    if (major != NV_TENSORRT_MAJOR) {
        std::fprintf(stderr, "%s was built for TensorRT %d, this process has version %d, so it registered nothing. Build it with "
                             "TENSORRT_ROOT=FOLDER tfiseg plugin build --force\n",
                     self, NV_TENSORRT_MAJOR, major);
        return;
    }
    nvinfer1::IPluginRegistry *registry = get_registry();
    int32_t count = 0;
    nvinfer1::IPluginCreatorInterface *const *creators = getCreators(count);
    for (int32_t k = 0; registry && k < count; ++k) {
        auto *creator = static_cast<nvinfer1::IPluginCreatorV3One *>(creators[k]);
        if (registry->getCreator(creator->getPluginName(), creator->getPluginVersion(), kNamespace)) continue;  // by loadLibrary
        if (!registry->registerCreator(*creator, kNamespace)) std::fprintf(stderr, "%s: TensorRT refused %s\n", self, creator->getPluginName());
    }
}

}  // namespace
