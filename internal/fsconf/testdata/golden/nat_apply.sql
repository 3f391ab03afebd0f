-- pbxmesh fsconf: the calls between nodes, for FusionPBX.
--
-- Run it with:  psql -v ON_ERROR_STOP=1 -d fusionpbx -f FILE
-- Then, on the switch:
--   rm -f /var/cache/fusionpbx/dialplan.far /var/cache/fusionpbx/configuration.acl.conf /var/cache/fusionpbx/*.configuration.sofia.conf
--   fs_cli -x 'memcache delete dialplan:far'         (with memcached instead of files)
--   fs_cli -x 'memcache delete configuration:acl.conf'
--   fs_cli -x "memcache delete $(hostname):configuration:sofia.conf"
--   fs_cli -x reloadacl
--   fs_cli -x 'sofia profile far start'
\set ON_ERROR_STOP on
BEGIN;

-- Rows of the same name that somebody else made are not touched.
DO $pbxmesh$
DECLARE
  own record;
BEGIN
  FOR own IN 
    SELECT p.sip_profile_uuid AS id, COALESCE(p.sip_profile_hostname, '') AS host,
      (SELECT s.sip_profile_setting_value FROM v_sip_profile_settings s WHERE s.sip_profile_uuid = p.sip_profile_uuid
        AND s.sip_profile_setting_name IN ('ext-sip-ip', 'sip-ip') ORDER BY s.sip_profile_setting_name LIMIT 1) AS address
    FROM v_sip_profiles p
    WHERE p.sip_profile_name = 'far' AND (p.sip_profile_description = 'pbxmesh: calls between nodes. Written by pbxmesh fsconf.' OR p.sip_profile_uuid = CAST('ca49bc4c-138a-5827-be2e-930c27d517d2' AS uuid))
    ORDER BY p.sip_profile_uuid <> CAST('ca49bc4c-138a-5827-be2e-930c27d517d2' AS uuid), host LOOP
    IF own.id = CAST('ca49bc4c-138a-5827-be2e-930c27d517d2' AS uuid) OR own.host NOT IN ('', 'pbx-1.example.com') AND 'pbx-1.example.com' <> '' THEN
      CONTINUE;
    ELSIF own.address = '192.0.2.10' THEN
      DELETE FROM v_sip_profile_settings WHERE sip_profile_uuid = own.id;
      DELETE FROM v_sip_profiles WHERE sip_profile_uuid = own.id;
    ELSIF own.host = '' THEN
      RAISE EXCEPTION 'the profile far of the node at % was written without --hostname and would be every switch''s: on that node first, run pbxmesh fsconf --flavor fusionpbx --hostname and its host name (fs_cli -x hostname), and run what it prints', own.address;
    ELSE
      RAISE EXCEPTION 'this database has the profile far of the host %: run pbxmesh fsconf --flavor fusionpbx with --hostname and this switch''s host name (fs_cli -x hostname)', own.host;
    END IF;
  END LOOP;
  IF EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'far' AND sip_profile_uuid <> CAST('ca49bc4c-138a-5827-be2e-930c27d517d2' AS uuid)
      AND COALESCE(sip_profile_hostname, '') IN ('', 'pbx-1.example.com')) THEN
    RAISE EXCEPTION 'there is another SIP profile of the name far: delete it (Advanced, SIP Profiles), or name another one with freeswitch.mesh_profile';
  END IF;
  IF EXISTS (SELECT FROM v_access_controls WHERE access_control_name = 'far' AND access_control_uuid <> CAST('41ec875a-9c65-5910-9c8c-7e00d92e73f0' AS uuid)) THEN
    RAISE EXCEPTION 'there is another access control of the name far: delete it (Advanced, Access Controls)';
  END IF;
  IF EXISTS (SELECT FROM v_dialplans WHERE dialplan_context = 'far' AND dialplan_uuid <> CAST('d5fac4e1-3a8a-5edb-bbd8-32c4287422ce' AS uuid)) THEN
    RAISE EXCEPTION 'there is another dialplan in the context far: delete it (Dialplan, Dialplan Manager)';
  END IF;
  IF EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'far' AND sip_profile_uuid <> CAST('ca49bc4c-138a-5827-be2e-930c27d517d2' AS uuid)) THEN
    RAISE WARNING 'another node of this database has a profile far too: FusionPBX lists every user of other nodes once for each. Give each node a profile of its own, such as freeswitch.mesh_profile: far-pbx-1.example.com';
  END IF;
END
$pbxmesh$;

-- What an earlier run put in.
DELETE FROM v_sip_profile_settings WHERE sip_profile_uuid = 'ca49bc4c-138a-5827-be2e-930c27d517d2';
DELETE FROM v_sip_profiles WHERE sip_profile_uuid = 'ca49bc4c-138a-5827-be2e-930c27d517d2';
DELETE FROM v_dialplan_details WHERE dialplan_uuid = 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce';
DELETE FROM v_dialplans WHERE dialplan_uuid = 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce';
DELETE FROM v_access_control_nodes WHERE access_control_uuid = '41ec875a-9c65-5910-9c8c-7e00d92e73f0';
DELETE FROM v_access_controls WHERE access_control_uuid = '41ec875a-9c65-5910-9c8c-7e00d92e73f0';

INSERT INTO v_sip_profiles (sip_profile_uuid, sip_profile_name, sip_profile_hostname, sip_profile_enabled, sip_profile_description)
VALUES ('ca49bc4c-138a-5827-be2e-930c27d517d2', 'far', 'pbx-1.example.com', 'true', 'pbxmesh: calls between nodes. Written by pbxmesh fsconf.');
INSERT INTO v_sip_profile_settings (sip_profile_setting_uuid, sip_profile_uuid, sip_profile_setting_name, sip_profile_setting_value, sip_profile_setting_enabled, sip_profile_setting_description)
VALUES
  ('f6723f4c-de1c-5383-9ad4-3cc429b6e440', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'sip-ip', '10.0.0.5', 'true', ''),
  ('6d1105a1-77c1-560f-b3d6-03a1da41d942', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'rtp-ip', '10.0.0.5', 'true', ''),
  ('0537f5a3-2ddd-5048-aa5a-76969bd1a520', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'sip-port', '5090', 'true', ''),
  ('f1e1ad20-8854-5b20-b538-ae4c2849ef19', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'ext-sip-ip', '192.0.2.10', 'true', 'node.mesh_address: what the other nodes reach through the router'),
  ('7edeb85a-a7de-5c94-96dd-39d6ab4c56ee', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'ext-rtp-ip', '192.0.2.10', 'true', ''),
  ('0c7c43d7-d3ec-5ef4-9632-9fe12682d1d9', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'dialplan', 'XML', 'true', ''),
  ('0e839e23-9a82-5249-8363-fa7b6b17c9a1', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'context', 'far', 'true', 'rings devices of this switch only: a call between nodes cannot loop'),
  ('54033503-cbae-51eb-903c-03b37fa46dcc', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'auth-calls', 'true', 'true', 'whom the list lets in is not asked for a password'),
  ('0c4d61c6-cfc4-597c-9819-dbaa86685533', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'auth-calls-acl-only', 'true', 'true', 'everybody else is refused, and not asked either: a challenge would let anybody try passwords'),
  ('2cf92cc6-dfb6-5a43-9230-0718619c81ba', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'apply-inbound-acl', 'far', 'true', 'the nodes of the mesh, see acl.conf'),
  ('69a36bc7-a552-5105-8ff0-dcb5bbb458d3', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'disable-register', 'true', 'true', ''),
  ('51aebc96-8b7f-52b0-baab-a97278a9d4c8', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'manage-presence', 'false', 'true', 'lamps belong to the phones'' profiles'),
  ('f7d29561-cc9a-568d-9f7d-81453945b8d2', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'multiple-registrations', 'true', 'true', 'one row for each remote node that a user is on'),
  ('29b3c7ee-a366-5e0a-a9d5-752e8966324a', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'timer-T1X64', '4000', 'true', 'a call to a dead node fails after 4 s instead of 32 s'),
  ('bbed8d63-da95-53ec-9457-c30d9df5d319', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'enable-timer', 'true', 'true', 'session timers (RFC 4028): a call whose other node died ends within 90 s, a held one goes on'),
  ('6734e277-ae3b-5da5-a358-d0ffd5355ef4', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'session-timeout', '90', 'true', ''),
  ('eef4237e-69f2-5552-b455-18783e1d0f97', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'minimum-session-expires', '90', 'true', ''),
  ('3ba7f290-e914-5ad1-aa46-01aa9b744d2a', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'update-refresher', 'true', 'true', 'by UPDATE, which leaves the media alone'),
  ('d3c9c8c9-3c77-5924-908a-cd853910cef2', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'inbound-late-negotiation', 'true', 'true', 'the callee''s phone chooses among all codecs that the caller''s has, as on one switch'),
  ('066894e8-8f2f-5f8c-856e-e11d82d17bf8', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'inbound-codec-prefs', '$${global_codec_prefs}', 'true', ''),
  ('07583236-267c-581d-af11-f11977fd793f', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'outbound-codec-prefs', '$${global_codec_prefs}', 'true', ''),
  ('d309311d-4fc6-5983-8e6c-29af3b2ee39f', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'dtmf-type', 'info', 'true', 'digits cross whatever the codec: telephone-event at the rate of opus is not heard by the sending switch'),
  ('2d5007a6-93d4-5d6c-8128-1ebdd8435894', 'ca49bc4c-138a-5827-be2e-930c27d517d2', 'rtp-timer-name', 'soft', 'true', '');

-- FusionPBX puts its global dialplans (user_exists and others) into every context, in
-- the order of dialplan_order: 5 is before them.
INSERT INTO v_dialplans (dialplan_uuid, app_uuid, dialplan_context, dialplan_name, dialplan_order, dialplan_continue, dialplan_enabled, dialplan_description, dialplan_xml)
VALUES ('d5fac4e1-3a8a-5edb-bbd8-32c4287422ce', '742714e5-8cdf-32fd-462c-cbe7e3d655db', 'far', 'far-in', 5, 'false', 'true', 'pbxmesh: calls between nodes. Written by pbxmesh fsconf.', '<extension name="far-in" continue="false" uuid="d5fac4e1-3a8a-5edb-bbd8-32c4287422ce">
  <condition field="${sip_req_host}" expression="^[A-Za-z0-9._-]{1,253}$"/>
  <condition field="destination_number" expression="^([A-Za-z0-9._+-]{1,64})$">
    <action application="set" data="hangup_after_bridge=true"/>
    <action application="set" data="domain_name=${sip_req_host}"/>
    <!-- where a call goes on that the callee transfers: to whom the callee may dial -->
    <action application="set" data="force_transfer_context=${user_data($1@${sip_req_host} var user_context)}"/>
    <!-- one call, one record: the caller''s node writes it -->
    <action application="set" data="process_cdr=false"/>
    <!-- never a user of another node, whatever profile is stopped or misspelt: sofia_contact would ask all of them -->
    <action application="set" data="sip_exclude_contact=pbxmesh-row"/>
    <!-- what the callee transfers is a call of this switch, with a record of its own -->
    <action application="set" data="execute_on_blind_transfer_pbxmesh=multiset ^^:process_cdr=:sip_exclude_contact=:pbxmesh_transferred=true"/>
    <!-- ring tone, intercom and privacy as the caller''s node asked for them -->
    <action application="export" data="nolocal:alert_info=${alert_info}"/>
    <action application="export" data="nolocal:sip_auto_answer=${sip_auto_answer_detected}"/>
    <action application="export" data="nolocal:sip_h_Privacy=${sip_Privacy}"/>
    <!-- *69 and pickup find the call, as they find one of this switch -->
    <action application="set" data="pbxmesh_hash=${hash(insert/${sip_req_host}-call_return/$1/${caller_id_number})}"/>
    <action application="set" data="pbxmesh_hash=${hash(insert/${sip_req_host}-last_dial_ext/$1/${uuid})}"/>
    <!-- a call that the callee transfers to a ring group, follow-me or the outside is this tenant''s, with the callee''s rights -->
    <action application="set" data="domain_uuid=${user_data($1@${sip_req_host} var domain_uuid)}"/>
    <action application="set" data="accountcode=${user_data($1@${sip_req_host} var accountcode)}"/>
    <action application="set" data="toll_allow=${user_data($1@${sip_req_host} var toll_allow)}"/>
    <action application="bridge" data="{presence_id=$1@${sip_req_host},sip_invite_domain=${sip_req_host}}${sofia_contact(internal/$1@${sip_req_host})},${sofia_contact(internal-ipv6/$1@${sip_req_host})}"/>
    <!-- without it a callee who does not answer would be told to the caller''s node as NORMAL_CLEARING -->
    <action application="hangup" data="${originate_disposition}"/>
  </condition>
</extension>
');
INSERT INTO v_dialplan_details (dialplan_detail_uuid, dialplan_uuid, dialplan_detail_tag, dialplan_detail_type, dialplan_detail_data, dialplan_detail_group, dialplan_detail_order, dialplan_detail_enabled)
VALUES
  ('4b9242af-1eda-5937-8391-c86e1b08b3b7', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'condition', '${sip_req_host}', '^[A-Za-z0-9._-]{1,253}$', 0, 5, 'true'),
  ('b40d890e-91ec-5af7-bcf3-8317079ebd8a', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'condition', 'destination_number', '^([A-Za-z0-9._+-]{1,64})$', 0, 10, 'true'),
  ('324bd3a6-265a-5b38-8672-3c6b6663dbec', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'set', 'hangup_after_bridge=true', 0, 15, 'true'),
  ('d3579d4b-4b03-53b0-9bac-a5783f87640f', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'set', 'domain_name=${sip_req_host}', 0, 20, 'true'),
  ('e064c1a2-d2dc-5e1c-8e92-101d5152ac93', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'set', 'force_transfer_context=${user_data($1@${sip_req_host} var user_context)}', 0, 25, 'true'),
  ('cd4d253e-dc88-563f-af0e-24b05a8f4ff4', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'set', 'process_cdr=false', 0, 30, 'true'),
  ('e4f5d1aa-d935-5320-aaef-76d89399b08a', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'set', 'sip_exclude_contact=pbxmesh-row', 0, 35, 'true'),
  ('28ff2b13-8774-519b-b836-88370c7eeb5a', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'set', 'execute_on_blind_transfer_pbxmesh=multiset ^^:process_cdr=:sip_exclude_contact=:pbxmesh_transferred=true', 0, 40, 'true'),
  ('e162246a-ac00-5276-aecc-88e2108528c5', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'export', 'nolocal:alert_info=${alert_info}', 0, 45, 'true'),
  ('1d864ae4-0830-5e16-a9aa-54e9ba49e689', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'export', 'nolocal:sip_auto_answer=${sip_auto_answer_detected}', 0, 50, 'true'),
  ('dced60d0-e3da-5f15-b387-bf62b4f03807', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'export', 'nolocal:sip_h_Privacy=${sip_Privacy}', 0, 55, 'true'),
  ('faf3a21d-0ca0-53d1-ab87-66de333e97c0', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'set', 'pbxmesh_hash=${hash(insert/${sip_req_host}-call_return/$1/${caller_id_number})}', 0, 60, 'true'),
  ('32b94f9a-8a20-5494-9ab6-0ebd878ebcc1', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'set', 'pbxmesh_hash=${hash(insert/${sip_req_host}-last_dial_ext/$1/${uuid})}', 0, 65, 'true'),
  ('b58a1117-e920-54de-9225-a44971d2f25b', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'set', 'domain_uuid=${user_data($1@${sip_req_host} var domain_uuid)}', 0, 70, 'true'),
  ('c6cada9a-4c1b-57ec-bfc1-6ed6bfe95b81', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'set', 'accountcode=${user_data($1@${sip_req_host} var accountcode)}', 0, 75, 'true'),
  ('0a0fcf0c-ff01-5aa4-95e6-080284391f9d', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'set', 'toll_allow=${user_data($1@${sip_req_host} var toll_allow)}', 0, 80, 'true'),
  ('32f2c78a-3d7d-5769-8129-bc63611248b2', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'bridge', '{presence_id=$1@${sip_req_host},sip_invite_domain=${sip_req_host}}${sofia_contact(internal/$1@${sip_req_host})},${sofia_contact(internal-ipv6/$1@${sip_req_host})}', 0, 85, 'true'),
  ('b86ddba4-c350-5d78-9a78-3eb895267f8f', 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce', 'action', 'hangup', '${originate_disposition}', 0, 90, 'true');

INSERT INTO v_access_controls (access_control_uuid, access_control_name, access_control_default, access_control_description)
VALUES ('41ec875a-9c65-5910-9c8c-7e00d92e73f0', 'far', 'deny', 'pbxmesh: calls between nodes. Written by pbxmesh fsconf.');
INSERT INTO v_access_control_nodes (access_control_node_uuid, access_control_uuid, node_type, node_cidr, node_description)
VALUES
  ('b63103cb-057b-5bdd-9d66-c4ac81680759', '41ec875a-9c65-5910-9c8c-7e00d92e73f0', 'allow', '192.0.2.10/32', 'buffalo'),
  ('0a9c339b-b033-5699-98b0-5c1b69d0d4f0', '41ec875a-9c65-5910-9c8c-7e00d92e73f0', 'allow', '198.51.100.20/32', 'london'),
  ('b98fb079-1d5c-5b14-b10b-869644a8d5f9', '41ec875a-9c65-5910-9c8c-7e00d92e73f0', 'allow', '2001:db8::30/128', 'singapore');

COMMIT;
