//go:build !race

package latencysim

const raceDetector = false
