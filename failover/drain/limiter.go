package drain

import (
	"time"

	"pbxmesh"
)

// window is the second of "registrations per second".
const window = time.Second

// reaction is how long a phone that was told to go is expected to show up elsewhere.
// One that takes longer (it reboots, or does not understand) no longer counts.
const reaction = 3 * time.Second

// naturalSpan is the time over which moves that nobody asked for are averaged.
const naturalSpan = 10 * time.Second

// limiter says how many phones may be told to go now, so that in no second the others
// receive more registrations than the pace allows.
//
// A phone may be told when the arrivals seen in the last second, those on their way,
// and what arrives by itself leave room for one more. Be τ the moment when the last of
// the arrivals of any second was told: at τ each other one was on its way or had
// arrived within the second before τ. So they were counted, and are pace at most. It
// does not matter how long a phone takes, nor how late we see it arrive, as long as it
// takes no longer than reaction; what arrives unasked after τ is beyond control, and
// is the reserve's business.
type limiter struct {
	arrived  []time.Time                 // seen within window, oldest first
	natural  []time.Time                 // those that nobody had told, within naturalSpan
	onTheWay map[pbxmesh.AOR][]time.Time // when told; oldest first
	tokens   float64                     // smooths what room allows at once
	last     time.Time                   // of tokens
}

func newLimiter() *limiter { return &limiter{onTheWay: map[pbxmesh.AOR][]time.Time{}} }

// told notes that a phone of aor was told to go.
func (l *limiter) told(now time.Time, aor pbxmesh.AOR) {
	l.onTheWay[aor] = append(l.onTheWay[aor], now)
	l.tokens--
}

// seen notes that a phone of aor has arrived elsewhere.
func (l *limiter) seen(now time.Time, aor pbxmesh.AOR) {
	l.expire(now)
	l.arrived = append(l.arrived, now)
	if list := l.onTheWay[aor]; len(list) > 1 {
		l.onTheWay[aor] = list[1:]
	} else if len(list) == 1 {
		delete(l.onTheWay, aor)
	} else {
		l.natural = append(l.natural, now)
	}
}

// expire forgets what no longer counts.
func (l *limiter) expire(now time.Time) {
	l.arrived = since(l.arrived, now.Add(-window))
	l.natural = since(l.natural, now.Add(-naturalSpan))
	for aor, list := range l.onTheWay {
		if list = since(list, now.Add(-reaction)); len(list) == 0 {
			delete(l.onTheWay, aor)
		} else {
			l.onTheWay[aor] = list
		}
	}
}

// since drops what is not after t from a list in order.
func since(list []time.Time, t time.Time) []time.Time {
	for len(list) > 0 && !list[0].After(t) {
		list = list[1:]
	}
	return list
}

// room returns how many phones may be told at now.
func (l *limiter) room(now time.Time, pace int) int {
	l.expire(now)
	// No more than a tenth of a second's worth at once, so that the others see a
	// stream and no volleys, also after a pause of ours.
	if passed := now.Sub(l.last).Seconds(); passed > 0 {
		l.tokens = min(l.tokens+passed*float64(pace), max(1, float64(pace)/10))
		l.last = now
	}
	coming := 0
	for _, list := range l.onTheWay {
		coming += len(list)
	}
	reserve := int(float64(len(l.natural))/naturalSpan.Seconds() + 0.5)
	return max(0, min(int(l.tokens), pace-len(l.arrived)-coming-reserve))
}
