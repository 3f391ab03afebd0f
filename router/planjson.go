package router

import (
	"encoding/json"
	"time"

	"pbxmesh"
)

// planJSON is Plan as the API and `--output json` show it: a unit in the name of
// the age, and empty lists instead of null, which scripts trip over.
type planJSON struct {
	AOR            pbxmesh.AOR `json:"aor,omitzero"`
	Result         Result      `json:"result"`
	FromMesh       bool        `json:"from_mesh"`
	DataAgeSeconds float64     `json:"data_age_seconds"`
	Targets        [][]Target  `json:"targets"`
	Reasons        []Reason    `json:"reasons"`
}

// MarshalJSON implements json.Marshaler.
func (p Plan) MarshalJSON() ([]byte, error) {
	j := planJSON{
		AOR: p.AOR, Result: p.Result, FromMesh: p.FromMesh,
		DataAgeSeconds: p.DataAge.Seconds(), Targets: p.Targets, Reasons: p.Reasons,
	}
	if j.Targets == nil {
		j.Targets = [][]Target{}
	}
	if j.Reasons == nil {
		j.Reasons = []Reason{}
	}
	return json.Marshal(j)
}

// UnmarshalJSON implements json.Unmarshaler, for the commands that print a plan
// which a running daemon made.
func (p *Plan) UnmarshalJSON(data []byte) error {
	var j planJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return err
	}
	*p = Plan{
		AOR: j.AOR, Result: j.Result, FromMesh: j.FromMesh, Targets: j.Targets, Reasons: j.Reasons,
		DataAge: time.Duration(j.DataAgeSeconds * float64(time.Second)),
	}
	return nil
}
