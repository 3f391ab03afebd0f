// Package udpbatch reads and writes UDP packets many at a time, for the servers that
// answer each packet with one. On Linux a batch is one system call; elsewhere it is
// one packet, and the code around it is the same.
//
// What was measured on it (docs/performance.md): a second reader that waits on the
// same socket is woken for nothing, so there is one for two processors (Readers);
// reads that block in the kernel on threads of their own cost more than Go's poller;
// and a call that cannot block is made past the scheduler, which would otherwise hand
// the processor to another thread whenever a batch takes longer than it likes.
//
// The package knows no protocol and starts nothing.
package udpbatch
