// Package registrytest holds what tests of the registry and of whole systems
// share: the contract of registry.Backend as tests ([TestBackend]) and a real
// redis-server with fault knobs ([StartRedis]).
//
// It refuses to pretend: a missing redis-server skips with a message, and fails
// when the environment names CI or PBXMESH_REQUIRE_REDIS.
package registrytest
