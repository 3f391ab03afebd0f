package latencysim

import (
	"math"
	"math/rand/v2"
	"net/netip"

	"pbxmesh"
	"pbxmesh/failover/latency"
)

// city is a place with some of the world's internet users, in millions.
type city struct {
	name     string
	lat, lon float64
	weight   float64
}

var cities = []city{
	{"Vancouver", 49.28, -123.12, 2.6}, {"Seattle", 47.61, -122.33, 4}, {"San Francisco", 37.77, -122.42, 7}, {"Los Angeles", 34.05, -118.24, 13},
	{"Phoenix", 33.45, -112.07, 4.9}, {"Denver", 39.74, -104.99, 2.9}, {"Dallas", 32.78, -96.80, 7.6}, {"Houston", 29.76, -95.37, 7.1},
	{"Chicago", 41.88, -87.63, 9.5}, {"Atlanta", 33.75, -84.39, 6}, {"Miami", 25.76, -80.19, 6.1}, {"Washington", 38.91, -77.04, 6.3},
	{"New York", 40.71, -74.01, 19}, {"Boston", 42.36, -71.06, 4.9}, {"Toronto", 43.65, -79.38, 6.2}, {"Montreal", 45.50, -73.57, 4.3},
	{"Mexico City", 19.43, -99.13, 21}, {"Guatemala", 14.63, -90.51, 3}, {"Panama", 8.98, -79.52, 2}, {"Bogota", 4.71, -74.07, 11},
	{"Lima", -12.05, -77.04, 10}, {"Quito", -0.18, -78.47, 2}, {"Santiago", -33.45, -70.67, 6.8}, {"Buenos Aires", -34.60, -58.38, 15},
	{"Sao Paulo", -23.55, -46.63, 22}, {"Rio de Janeiro", -22.91, -43.17, 13}, {"Recife", -8.05, -34.88, 4}, {"Caracas", 10.48, -66.90, 3},
	{"Dublin", 53.35, -6.26, 2}, {"Manchester", 53.48, -2.24, 2.8}, {"London", 51.51, -0.13, 14}, {"Paris", 48.86, 2.35, 13},
	{"Madrid", 40.42, -3.70, 6.7}, {"Lisbon", 38.72, -9.14, 2.9}, {"Brussels", 50.85, 4.35, 2.1}, {"Amsterdam", 52.37, 4.90, 2.5},
	{"Frankfurt", 50.11, 8.68, 5}, {"Berlin", 52.52, 13.41, 4.5}, {"Munich", 48.14, 11.58, 3}, {"Zurich", 47.37, 8.54, 1.5},
	{"Milan", 45.46, 9.19, 5}, {"Rome", 41.90, 12.50, 4.3}, {"Vienna", 48.21, 16.37, 2.9}, {"Prague", 50.08, 14.44, 2.7},
	{"Warsaw", 52.23, 21.01, 3.1}, {"Stockholm", 59.33, 18.07, 2.4}, {"Oslo", 59.91, 10.75, 1.7}, {"Helsinki", 60.17, 24.94, 1.5},
	{"Athens", 37.98, 23.73, 3.5}, {"Bucharest", 44.43, 26.10, 2.2}, {"Kyiv", 50.45, 30.52, 3.5}, {"Istanbul", 41.01, 28.98, 15},
	{"Ankara", 39.93, 32.86, 5}, {"Tel Aviv", 32.09, 34.78, 4}, {"Cairo", 30.04, 31.24, 21}, {"Casablanca", 33.57, -7.59, 4},
	{"Tunis", 36.81, 10.18, 2.5}, {"Algiers", 36.75, 3.06, 4}, {"Lagos", 6.52, 3.38, 15}, {"Accra", 5.60, -0.19, 3},
	{"Dakar", 14.72, -17.47, 3}, {"Nairobi", -1.29, 36.82, 5}, {"Addis Ababa", 9.03, 38.74, 4}, {"Dar es Salaam", -6.79, 39.21, 5},
	{"Kinshasa", -4.44, 15.27, 6}, {"Luanda", -8.84, 13.23, 4}, {"Johannesburg", -26.20, 28.05, 10}, {"Cape Town", -33.92, 18.42, 4.6},
	{"Riyadh", 24.71, 46.68, 7}, {"Dubai", 25.20, 55.27, 3.5}, {"Doha", 25.29, 51.53, 2}, {"Kuwait", 29.38, 47.98, 3},
	{"Tehran", 35.69, 51.39, 9}, {"Karachi", 24.86, 67.01, 16}, {"Lahore", 31.55, 74.34, 13}, {"Delhi", 28.61, 77.21, 30},
	{"Mumbai", 19.08, 72.88, 24}, {"Bangalore", 12.97, 77.59, 12}, {"Chennai", 13.08, 80.27, 11}, {"Hyderabad", 17.39, 78.49, 10},
	{"Kolkata", 22.57, 88.36, 14}, {"Colombo", 6.93, 79.86, 2.5}, {"Dhaka", 23.81, 90.41, 20}, {"Kathmandu", 27.72, 85.32, 1.5},
	{"Yangon", 16.87, 96.20, 5}, {"Bangkok", 13.76, 100.50, 11}, {"Hanoi", 21.03, 105.85, 8}, {"Ho Chi Minh City", 10.82, 106.63, 9},
	{"Kuala Lumpur", 3.14, 101.69, 8}, {"Singapore", 1.35, 103.82, 5.9}, {"Jakarta", -6.21, 106.85, 30}, {"Surabaya", -7.26, 112.75, 6},
	{"Manila", 14.60, 120.98, 14}, {"Taipei", 25.03, 121.57, 7}, {"Hong Kong", 22.32, 114.17, 7.5}, {"Guangzhou", 23.13, 113.26, 18},
	{"Shanghai", 31.23, 121.47, 27}, {"Beijing", 39.90, 116.41, 21}, {"Seoul", 37.57, 126.98, 22}, {"Busan", 35.18, 129.08, 3.4},
	{"Osaka", 34.69, 135.50, 19}, {"Tokyo", 35.68, 139.69, 37}, {"Sapporo", 43.06, 141.35, 2}, {"Moscow", 55.76, 37.62, 12},
	{"Novosibirsk", 55.01, 82.94, 1.6}, {"Almaty", 43.24, 76.89, 2}, {"Tashkent", 41.30, 69.24, 2.5}, {"Perth", -31.95, 115.86, 2.1},
	{"Adelaide", -34.93, 138.60, 1.4}, {"Melbourne", -37.81, 144.96, 5}, {"Sydney", -33.87, 151.21, 5.3}, {"Brisbane", -27.47, 153.03, 2.5},
	{"Auckland", -36.85, 174.76, 1.7}, {"Honolulu", 21.31, -157.86, 1},
}

// hubs are where networks meet that do not meet nearer.
var hubs = []pbxmesh.Location{
	{Latitude: 50.11, Longitude: 8.68}, {Latitude: 39.04, Longitude: -77.49}, {Latitude: 1.35, Longitude: 103.82}, {Latitude: 22.32, Longitude: 114.17},
	{Latitude: 34.05, Longitude: -118.24}, {Latitude: 51.51, Longitude: -0.13}, {Latitude: 43.30, Longitude: 5.37}, {Latitude: 25.76, Longitude: -80.19},
}

func sites() []pbxmesh.Node {
	site := func(id pbxmesh.NodeID, lat, lon float64) pbxmesh.Node {
		return pbxmesh.Node{
			ID: id, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Ports: pbxmesh.SIPPorts{UDP: 5060},
			Location: pbxmesh.Location{Latitude: lat, Longitude: lon},
		}
	}
	return []pbxmesh.Node{
		site("buffalo", 42.89, -78.88), site("london", 51.51, -0.13), site("singapore", 1.35, 103.82),
		site("losangeles", 34.05, -118.24), site("saopaulo", -23.55, -46.63), site("mumbai", 19.08, 72.88),
	}
}

// The made-up internet.
const (
	// A route is longer than the great circle: rtt of a straight route is
	// stretch * distance / 102 km per ms, stretch 1.1 to some 2.2, around 1.4.
	stretchMedian, stretchSigma = 1.4, 0.18

	// detours is the share of (provider in a city, node) pairs whose packets go by way
	// of a hub somewhere else.
	detours = 0.25

	// apart is the share of networks with routes of their own, not their provider's.
	apart = 0.1

	// misplaced is the share of networks that the database of places puts elsewhere.
	misplaced = 0.08

	noiseMS  = 3.0  // mean of what queues add to a sample, exponential
	tickMS   = 20.0 // the switch hands events over so often: the two of a sample are a multiple apart
	spikes   = 0.03 // share of samples with up to 200 ms more: a retransmission, a busy phone
	accessMS = 8.0  // mean of what a network's access adds, to all nodes alike
)

// client is one client network, a /24.
type client struct {
	prefix netip.Prefix
	group  *provider // whose routes it uses
	access float64
	phones []phone
	where  pbxmesh.Location // as a database has it

	// resolver asks for the network without its subnet; the zero resolver sends the subnet.
	resolver resolver
}

type phone struct {
	addr  netip.Addr
	takes float64 // milliseconds to compute a digest and answer
	lie   lie
	haunt int // the node of a hurrying liar
}

// provider is an access provider in one city, a /16: its routes to the nodes.
type provider struct {
	city city
	rtt  []float64 // by node, milliseconds without access
}

// world is everything that the mesh does not know.
type world struct {
	nodes   []pbxmesh.Node
	clients []*client
	groups  []*provider
	rand    *rand.Rand
	phones  int // of a network; 0 is 10 to 49
}

// newWorld makes the internet of a seed, with about so many client networks.
func newWorld(seed uint64, networks, phones int) *world {
	r := rand.New(rand.NewPCG(seed, 20261126))
	w := &world{nodes: sites(), rand: r, phones: phones}
	total := 0.0
	for _, c := range cities {
		total += math.Sqrt(c.weight)
	}
	for _, c := range cities {
		here := int(math.Round(float64(networks) * math.Sqrt(c.weight) / total))
		for here > 0 {
			g := &provider{city: c, rtt: make([]float64, len(w.nodes))}
			for i := range w.nodes {
				g.rtt[i] = w.route(c.location(), w.nodes[i].Location)
			}
			w.groups = append(w.groups, g)
			size := min(here, 1+r.IntN(5))
			here -= size
			for k := range size {
				w.addClient(g, k)
			}
		}
	}
	return w
}

func (c city) location() pbxmesh.Location {
	return pbxmesh.Location{Latitude: c.lat, Longitude: c.lon}
}

func (w *world) addClient(g *provider, k int) {
	n := len(w.groups) - 1
	base := netip.AddrFrom4([4]byte{byte(20 + n>>8), byte(n), byte(k), 0})
	c := &client{prefix: netip.PrefixFrom(base, 24), group: g, access: min(1+w.rand.ExpFloat64()*accessMS, 60), where: g.city.location()}
	if w.rand.Float64() < misplaced {
		c.where = cities[w.rand.IntN(len(cities))].location()
	}
	if w.rand.Float64() < apart {
		own := &provider{city: g.city, rtt: make([]float64, len(w.nodes))}
		for i := range w.nodes {
			own.rtt[i] = w.route(g.city.location(), w.nodes[i].Location)
		}
		c.group = own
	}
	phones := int(10 * math.Exp2(w.rand.Float64()*2.3)) // 10 to 49
	if w.phones > 0 {
		phones = w.phones
	}
	for range phones {
		a := base.As4()
		a[3] = byte(1 + len(c.phones))
		c.phones = append(c.phones, phone{addr: netip.AddrFrom4(a), takes: 1 + w.rand.Float64()*7})
	}
	w.clients = append(w.clients, c)
}

// route is the round trip between a city and a node.
func (w *world) route(from, to pbxmesh.Location) float64 {
	km := distance(from, to)
	if w.rand.Float64() < detours {
		hub := hubs[w.rand.IntN(len(hubs))]
		km = distance(from, hub) + distance(hub, to)
	}
	stretch := max(1.05, stretchMedian*math.Exp(stretchSigma*w.rand.NormFloat64()))
	return 2 + stretch*km/102
}

func distance(a, b pbxmesh.Location) float64 {
	const rad = math.Pi / 180
	cos := math.Sin(a.Latitude*rad)*math.Sin(b.Latitude*rad) +
		math.Cos(a.Latitude*rad)*math.Cos(b.Latitude*rad)*math.Cos((a.Longitude-b.Longitude)*rad)
	return 6371 * math.Acos(min(1, max(-1, cos)))
}

// measured is a challenge, as the event socket shows it.
func (w *world) measured(c *client, p *phone, node int) float64 {
	if p.lie == hurries {
		return hurriedMS
	}
	return max(0.01, tickMS*math.Floor((w.rand.Float64()*tickMS+w.timed(c, p, node))/tickMS))
}

// timed is a round trip, as a switch times it itself.
func (w *world) timed(c *client, p *phone, node int) float64 {
	ms := c.group.rtt[node] + c.access + p.takes + w.rand.ExpFloat64()*noiseMS
	if w.rand.Float64() < spikes {
		ms += w.rand.Float64() * 200
	}
	if p.lie == delays {
		ms += delayMS
	}
	return ms
}

// best returns the node with the lowest true latency.
func (c *client) best() int { return c.group.best() }

func (g *provider) best() int {
	best := 0
	for i, ms := range g.rtt {
		if ms < g.rtt[best] {
			best = i
		}
	}
	return best
}

// places is the database of places.
type places map[netip.Prefix]pbxmesh.Location

func (w *world) places() places {
	out := make(places)
	for _, c := range w.clients {
		out[c.prefix] = c.where
		if c.resolver.kind != sends {
			network, _ := c.resolver.addr.Prefix(24)
			out[network] = c.resolver.where
		}
	}
	return out
}

// Where implements latency.Places.
func (p *places) Where(client netip.Addr) latency.Where {
	network, err := client.Prefix(24)
	if err != nil {
		return latency.Where{}
	}
	return latency.Where{Location: (*p)[network], Network: network}
}

// change reroutes a share of the providers: for one half the route to their best node
// becomes 40 to 120 ms longer, for the other half one to another node becomes the best.
func (s *sim) change(share float64) {
	s.changed = make(map[*provider]int)
	for _, g := range s.groups {
		if s.rand.Float64() >= share {
			continue
		}
		best := g.best()
		if s.rand.Float64() < 0.5 {
			g.rtt[best] += 40 + 80*s.rand.Float64()
			if g.best() != best {
				s.changed[g] = 1
			}
			continue
		}
		for i := range g.rtt {
			// No route is faster than light.
			if low := 2 + 1.1*distance(g.city.location(), s.nodes[i].Location)/102; i != best && low < 0.8*g.rtt[best] {
				g.rtt[i] = low
				s.changed[g] = 2
				break
			}
		}
	}
}
