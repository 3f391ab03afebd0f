// Package e2e plays whole stories: switches, daemons and phones together. It holds
// tests only.
//
// The same scenarios run on simulated switches and, when PBXMESH_FREESWITCH names
// a freeswitch binary, on real ones. Each step is verified at the far end: what a
// phone received, which switch sent it, what another daemon knows.
package e2e
