// Package demo tells the whole story of pbxmesh on one machine: three simulated
// switches with their daemons, two name servers, and phones in three towns.
//
// It owns the stage (what runs where), the steps of the story, and the proof of
// each: a step holds only when the far end shows it. It refuses to decide
// anything that a daemon decides: the daemons are the real ones.
package demo
