package latency

import (
	"math"
	"net/netip"

	"pbxmesh"
)

// From distance to latency.
//
// Light needs 4.9 µs for a kilometre of fibre (index of refraction 1.468), so no round
// trip over d km is below d/102 ms. Cables do not follow great circles, packets do not
// follow the shortest cables, and both ends have an access network: the guess is half as
// much again, and baseMS on top.
const (
	fibreKMPerMS = 102.0 // of distance, in a round trip
	guessFactor  = 1.5
	baseMS       = 4.0
	earthKM      = 6371.0

	// unknownMS is the guess where a place is not known: the other side of an ocean.
	unknownMS = 120.0
)

// distanceKM is the great circle between two places.
func distanceKM(a, b pbxmesh.Location) float64 {
	const rad = math.Pi / 180
	la, lb := a.Latitude*rad, b.Latitude*rad
	dla, dlo := (b.Latitude-a.Latitude)*rad, (b.Longitude-a.Longitude)*rad
	h := math.Sin(dla/2)*math.Sin(dla/2) + math.Cos(la)*math.Cos(lb)*math.Sin(dlo/2)*math.Sin(dlo/2)
	return 2 * earthKM * math.Asin(math.Sqrt(min(1, h)))
}

// lowestMS is what physics allows between two places, in milliseconds; 0 when one is
// not known.
func lowestMS(a, b pbxmesh.Location) float64 {
	if !a.Known() || !b.Known() {
		return 0
	}
	return distanceKM(a, b) / fibreKMPerMS
}

// guessMS is the latency to expect between two places, in milliseconds.
func guessMS(a, b pbxmesh.Location) float64 {
	if !a.Known() || !b.Known() {
		return unknownMS
	}
	return baseMS + guessFactor*lowestMS(a, b)
}

// Where is what is known of a client's place. The zero Where is nothing.
type Where struct {
	Location pbxmesh.Location
	AS       uint32 // autonomous system number, 0 for not known

	// Network is the largest known network around the client with one place.
	Network netip.Prefix
}

// Places tells where clients are. Where must not block and must not allocate.
type Places interface {
	Where(client netip.Addr) Where
}

// Placed is a client network whose place the configuration tells.
type Placed struct {
	Network  netip.Prefix
	Location pbxmesh.Location
}
