package latency

import (
	"math"
	"net/netip"
	"slices"

	"pbxmesh"
)

// vector is a place on the unit sphere; the zero vector is not known.
type vector struct{ x, y, z float64 }

func vectorOf(l pbxmesh.Location) vector {
	if !l.Known() {
		return vector{}
	}
	const rad = math.Pi / 180
	cosLat := math.Cos(l.Latitude * rad)
	return vector{cosLat * math.Cos(l.Longitude*rad), cosLat * math.Sin(l.Longitude*rad), math.Sin(l.Latitude * rad)}
}

func (v vector) dot(w vector) float64 { return v.x*w.x + v.y*w.y + v.z*w.z }

// lowestMS is that of two known places.
func (v vector) lowestMS(w vector) float64 {
	return earthKM / fibreKMPerMS * math.Acos(min(1, max(-1, v.dot(w))))
}

// gridDegrees is the edge of a cell of the grid: 222 km, 2 ms of fibre.
const (
	gridDegrees = 2
	gridRows    = 180 / gridDegrees
	gridColumns = 360 / gridDegrees
)

// grid holds the order of the nodes by distance for every cell of the map: for clients
// of whom nothing is known but where they are.
type grid struct {
	places Places
	cells  [gridRows * gridColumns]int32 // index into orders
	orders [][]pbxmesh.NodeID
}

// newGrid returns nil when nobody's place is known.
func newGrid(v *View) *grid {
	known := slices.ContainsFunc(v.Nodes, func(n pbxmesh.Node) bool { return n.Location.Known() })
	if v.places == nil || !known {
		return nil
	}
	g := &grid{places: v.places}
	index := make(map[string]int32)
	order := make([]int, len(v.Nodes))
	near := make([]float64, len(v.Nodes))
	key := make([]byte, len(v.Nodes)*2)
	for row := range gridRows {
		for column := range gridColumns {
			here := vectorOf(pbxmesh.Location{
				Latitude: (float64(row)+0.5)*gridDegrees - 90, Longitude: (float64(column)+0.5)*gridDegrees - 180,
			})
			for i := range v.Nodes {
				// Nodes whose place is not known come last, in their own order.
				if order[i], near[i] = i, -2; v.Nodes[i].Location.Known() {
					near[i] = here.dot(v.vectors[i])
				}
			}
			slices.SortStableFunc(order, func(a, b int) int {
				switch {
				case near[a] > near[b]:
					return -1
				case near[a] < near[b]:
					return 1
				}
				return 0
			})
			for i, n := range order {
				key[2*i], key[2*i+1] = byte(n>>8), byte(n)
			}
			at, ok := index[string(key)]
			if !ok {
				at = int32(len(g.orders)) //nolint:gosec // at most the number of cells
				nodes := make([]pbxmesh.NodeID, len(order))
				for i, n := range order {
					nodes[i] = v.Nodes[n].ID
				}
				g.orders = append(g.orders, nodes)
				index[string(key)] = at
			}
			g.cells[row*gridColumns+column] = at
		}
	}
	return g
}

// Orders returns the orders by distance that there are.
func (v *View) Orders() [][]pbxmesh.NodeID {
	if v.grid == nil {
		return nil
	}
	return v.grid.orders
}

// Locate returns which of Orders a client gets by its place alone, and the network
// around it with one place. It does not block and does not allocate.
func (v *View) Locate(client netip.Addr) (order int, network netip.Prefix, ok bool) {
	if v.grid == nil {
		return 0, netip.Prefix{}, false
	}
	w := v.grid.places.Where(client)
	if !w.Location.Known() || !w.Location.Valid() {
		return 0, w.Network, false
	}
	row := min(int((w.Location.Latitude+90)/gridDegrees), gridRows-1)
	column := min(int((w.Location.Longitude+180)/gridDegrees), gridColumns-1)
	return int(v.grid.cells[row*gridColumns+column]), w.Network, true
}
