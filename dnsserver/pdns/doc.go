// Package pdns lets a PowerDNS Authoritative Server answer in our place: it is the
// server side of PowerDNS's remote backend over HTTP.
//
// It owns the protocol (requests, replies, limits) and asks a Zone for the records of a
// name and client, so that both name servers decide the same. It refuses everything
// that would change a zone, and keys: PowerDNS signs with its own.
package pdns
