// Runs dynslice's commands for the tests: each in a process of its own, forked from this one, which has loaded LibTorch
// already. That takes 0.3 s a launch, and the tests launch the program thousands of times.
//
// Usage: warm_main FD, a connected Unix stream socket. A request is its length in bytes (4 bytes, this machine's
// order), sent together with the files that become standard output and standard error, and a JSON object
// {"arguments": [...], "environment": {...}, "folder": "..."}. The answers are two numbers of 4 bytes: the process,
// when it runs, and its wait status, when it has ended. At the socket's end this process ends.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

#include "cli/options/parse.h"
#include "cli/run.h"

namespace {

using nlohmann::json;

struct Request {
  int out = -1;
  int err = -1;
  json what;
};

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::_Exit(125);
}

// False at the end of the socket.
bool receive_length(int socket, uint32_t& length, Request& request) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(2 * sizeof(int))> control{};
  iovec data{&length, sizeof length};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t received = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
  if (received == 0) return false;
  const cmsghdr* files = CMSG_FIRSTHDR(&message);
  if (received != sizeof length || files == nullptr || files->cmsg_len != CMSG_LEN(2 * sizeof(int))) fail("recvmsg");
  std::array<int, 2> descriptors{};
  std::memcpy(descriptors.data(), CMSG_DATA(files), sizeof descriptors);
  request.out = descriptors[0];
  request.err = descriptors[1];
  return true;
}

bool receive(int socket, Request& request) {
  uint32_t length = 0;
  if (!receive_length(socket, length, request)) return false;
  std::string text(length, '\0');
  if (::recv(socket, text.data(), length, MSG_WAITALL) != static_cast<ssize_t>(length)) fail("recv");
  request.what = json::parse(text);
  return true;
}

void answer(int socket, int32_t number) {
  if (::send(socket, &number, sizeof number, MSG_NOSIGNAL) != sizeof number) fail("send");
}

// What main.cpp does, with the library that is there already.
int run(std::vector<std::string> arguments) {
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  const auto parsed = dynslice::cli::parse_command_line(static_cast<int>(arguments.size()), pointers.data());
  if (const int* exit_code = std::get_if<int>(&parsed)) return *exit_code;
  return dynslice_run_command(std::get<dynslice::cli::Command>(parsed));
}

[[noreturn]] void become(const Request& request, int socket) {
  ::close(socket);
  ::clearenv();
  for (const auto& [name, value] : request.what.at("environment").items()) {
    ::setenv(name.c_str(), value.get<std::string>().c_str(), /*overwrite=*/1);
  }
  const int nothing = ::open("/dev/null", O_RDONLY);
  if (::dup2(nothing, 0) < 0 || ::dup2(request.out, 1) < 0 || ::dup2(request.err, 2) < 0) fail("dup2");
  for (const int file : {nothing, request.out, request.err}) {
    if (file > 2) ::close(file);
  }
  if (::chdir(request.what.at("folder").get<std::string>().c_str()) != 0) fail("chdir");
  const int exit_code = run(request.what.at("arguments").get<std::vector<std::string>>());
  std::cout.flush();
  std::cerr.flush();
  std::fflush(nullptr);
  std::_Exit(exit_code);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: warm_main FD\n";
    return 2;
  }
  const int socket = std::atoi(argv[1]);
  ::fcntl(socket, F_SETFD, FD_CLOEXEC);
  Request request;
  while (receive(socket, request)) {
    const pid_t child = ::fork();
    if (child < 0) fail("fork");
    if (child == 0) become(request, socket);
    ::close(request.out);
    ::close(request.err);
    answer(socket, child);
    int status = 0;
    if (::waitpid(child, &status, 0) != child) fail("waitpid");
    answer(socket, status);
  }
  std::_Exit(0);
}
