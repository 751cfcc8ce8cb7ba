// The parts of the bundle reader that need no bundle. What whole bundles do is compared with the
// Python reader in tests/runtime/test_native_bundle.py.

#include <gtest/gtest.h>

#include <clocale>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <thread>

#include "bundle/certificate.h"
#include "bundle/container.h"
#include "bundle/json.h"
#include "bundle/onnx_external.h"
#include "bundle/sha256.h"
#include "bundle/sums.h"
#include "error.h"

namespace {

using namespace cascade;

std::span<const std::byte> bytes(std::string_view text) {
    return std::as_bytes(std::span(text));
}

std::string refusal(const auto& attempt) {
    try {
        attempt();
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

std::string refused_json(const std::string& text) {
    return refusal([&] { json::parse(bytes(text), "file"); });
}

TEST(Names, are_plain_segments) {
    for (const char* name : {"a", "SHA256SUMS", "a/b-1/c_d+e.F", "0"}) {
        EXPECT_TRUE(is_name(name)) << name;
    }
    const std::string zero("a\0b", 3);
    for (const std::string& name :
         {std::string(), zero, std::string(1025, 'a'), std::string("/a"), std::string("a/"),
          std::string("a//b"), std::string("a/.b"), std::string(".."), std::string("a b"),
          std::string("\xc3\xa4"), std::string("a\\b"), std::string("-a"), std::string("a\n")}) {
        EXPECT_FALSE(is_name(name)) << name;
    }
}

TEST(Hash, is_sha256_in_pieces_or_at_once) {
    const std::string text = "abc";
    EXPECT_EQ(sha256_hex(std::string_view(text)),
              "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    Sha256 hash;
    hash.update(bytes("a"));
    hash.update(bytes(""));
    hash.update(bytes("bc"));
    EXPECT_EQ(hash.hex(), sha256_hex(std::string_view(text)));
}

TEST(Json, depth_is_that_of_objects_and_arrays) {
    const auto nested = [](int arrays, const char* inside) {
        return "{\"a\": " + std::string(arrays, '[') + inside + std::string(arrays, ']') + "}";
    };
    EXPECT_EQ(refused_json(nested(31, "1")), "");
    EXPECT_NE(refused_json(nested(32, "")).find("nested deeper than 32"), std::string::npos);
}

TEST(Json, what_the_parser_takes_and_the_standard_does_not_is_refused) {
    EXPECT_NE(refused_json("\xef\xbb\xbf{}"), "");
    EXPECT_NE(refused_json(std::string("{}\0{", 4)), "");
    EXPECT_NE(refused_json("{} // no comment"), "");
}

TEST(Json, numbers_are_read_alike_in_every_locale) {
    const char* before = std::setlocale(LC_NUMERIC, nullptr);
    const std::string kept = before ? before : "C";
    if (!std::setlocale(LC_NUMERIC, "de_DE.UTF-8")) {
        GTEST_SKIP() << "the locale de_DE.UTF-8 is not installed";
    }
    const json::Object found = json::parse(bytes("{\"a\": 1.25, \"b\": -2.5e-1}"), "file");
    std::setlocale(LC_NUMERIC, kept.c_str());
    EXPECT_EQ(std::get<double>(json::find(found, "a")->content), 1.25);
    EXPECT_EQ(std::get<double>(json::find(found, "b")->content), -0.25);
}

TEST(Json, numbers_at_the_edges) {
    const json::Object found = json::parse(
        bytes("{\"a\": 1e-999, \"b\": 9007199254740992, \"c\": 5e-324, \"d\": -0.0}"), "file");
    EXPECT_EQ(std::get<double>(json::find(found, "a")->content), 0.0);
    EXPECT_EQ(std::get<std::int64_t>(json::find(found, "b")->content), json::max_integer);
    EXPECT_EQ(std::get<double>(json::find(found, "c")->content), 5e-324);
    EXPECT_TRUE(std::signbit(std::get<double>(json::find(found, "d")->content)));
    for (const char* text : {"1e999", "-1e999", "9007199254740993", "-9223372036854775808",
                             "-9007199254740993", "123456789012345678901234567890"}) {
        EXPECT_NE(refused_json("{\"a\": " + std::string(text) + "}"), "") << text;
    }
}

TEST(Binding, is_the_text_of_the_specification) {
    Preprocess p;
    p.width = 48;
    p.height = 64;
    p.color = "RGB", p.exif = "apply", p.resize = "bilinear", p.crop = "none";
    p.jpeg = "full";
    Decision decision{"certified", {}, 0.0F, std::nullopt};
    decision.exits = {{"gate", 1.5F, -0.25F, 1.25F, 2.0F}, {"gate", 1.5F, -0.25F, 1.25F, {}}};
    EXPECT_EQ(binding_text(p, decision, {{"b/x", "bb"}, {"a/x", "aa"}}, {"pixels", "tokens"}),
              "preprocess 48 64 RGB apply bilinear none full\n"
              "policy certified 00000000\n"
              "exit gate 3fc00000 be800000 3fa00000 40000000\n"
              "exit gate 3fc00000 be800000 3fa00000 7f800000\n"
              "engine aa a/x\n"
              "engine bb b/x\n");
}

// A file that names weights outside, with `tag` for the field of its graph.
std::string model_with_graph_tag(const std::string& tag) {
    const auto field = [](int number, const std::string& content) {
        return std::string(1, static_cast<char>(number << 3 | 2)) +
               static_cast<char>(content.size()) + content;
    };
    const std::string entry = field(1, "location") + field(2, "../outside");
    const std::string graph = field(5, field(13, entry));
    return tag + static_cast<char>(graph.size()) + graph;
}

std::vector<std::string> external_locations(const std::string& model) {
    std::vector<std::string> found;
    each_external_location(bytes(model), "m", [&](const std::string& l) { found.push_back(l); });
    return found;
}

TEST(Onnx, weights_outside_are_refused) {
    const std::string model = model_with_graph_tag("\x3a");
    EXPECT_EQ(external_locations(model), std::vector<std::string>{"../outside"});
    EXPECT_NE(refusal([&] { check_external_data(bytes(model), "m", {"stage0.data"}); }), "");
    EXPECT_EQ(refusal([&] { check_external_data(bytes(model), "m", {"../outside"}); }), "");
}

TEST(Onnx, field_hidden_under_a_longer_number_is_refused) {
    // 2^32 + 0x3a: protobuf libraries keep the lower 32 bits, and find the graph.
    const std::string model = model_with_graph_tag("\xba\x80\x80\x80\x10");
    EXPECT_NE(refusal([&] { external_locations(model); }), "");
    const std::string longer = model_with_graph_tag(std::string("\xba\x80\x80\x80\x00", 5));
    EXPECT_EQ(external_locations(longer).size(), 1u);  // the same number, in five bytes
}

TEST(Folder, may_be_read_by_many_threads) {
    const auto folder = std::filesystem::temp_directory_path() / "cascade_bundle_test_threads";
    std::filesystem::create_directories(folder);
    std::ofstream(folder / "a") << std::string(3 << 20, 'x');
    const auto container = open_container(folder.string());
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&] { EXPECT_EQ(container->read("a").size(), 3u << 20); });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    std::filesystem::remove_all(folder);
}

}
