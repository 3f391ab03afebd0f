-- pbxmesh fsconf: the calls between nodes, for FusionPBX.
--
-- Run it with:  psql -v ON_ERROR_STOP=1 -d fusionpbx -f FILE
-- Then, on the switch:
--   rm -f /var/cache/fusionpbx/dialplan.mesh /var/cache/fusionpbx/configuration.acl.conf /var/cache/fusionpbx/*.configuration.sofia.conf
--   fs_cli -x 'memcache delete dialplan:mesh'         (with memcached instead of files)
--   fs_cli -x 'memcache delete configuration:acl.conf'
--   fs_cli -x "memcache delete $(hostname):configuration:sofia.conf"
--   fs_cli -x reloadacl
--   fs_cli -x 'sofia profile mesh start'
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
    WHERE p.sip_profile_name = 'mesh' AND (p.sip_profile_description = 'pbxmesh: calls between nodes. Written by pbxmesh fsconf.' OR p.sip_profile_uuid = CAST('f1a9e6c3-ac42-5fcf-b153-4981563e7a87' AS uuid))
    ORDER BY p.sip_profile_uuid <> CAST('f1a9e6c3-ac42-5fcf-b153-4981563e7a87' AS uuid), host LOOP
    IF own.id = CAST('f1a9e6c3-ac42-5fcf-b153-4981563e7a87' AS uuid) OR own.host NOT IN ('', '') AND '' <> '' THEN
      CONTINUE;
    ELSIF false THEN
      DELETE FROM v_sip_profile_settings WHERE sip_profile_uuid = own.id;
      DELETE FROM v_sip_profiles WHERE sip_profile_uuid = own.id;
    ELSIF own.host = '' THEN
      RAISE EXCEPTION 'the profile mesh of the node at % was written without --hostname and would be every switch''s: on that node first, run pbxmesh fsconf --flavor fusionpbx --hostname and its host name (fs_cli -x hostname), and run what it prints', own.address;
    ELSE
      RAISE EXCEPTION 'this database has the profile mesh of the host %: run pbxmesh fsconf --flavor fusionpbx with --hostname and this switch''s host name (fs_cli -x hostname)', own.host;
    END IF;
  END LOOP;
  IF EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'mesh' AND sip_profile_uuid <> CAST('f1a9e6c3-ac42-5fcf-b153-4981563e7a87' AS uuid)) THEN
    RAISE EXCEPTION 'there is another SIP profile of the name mesh: delete it (Advanced, SIP Profiles), or name another one with freeswitch.mesh_profile';
  END IF;
  IF EXISTS (SELECT FROM v_access_controls WHERE access_control_name = 'mesh' AND access_control_uuid <> CAST('045b210c-d76c-5625-8b51-e5604dd226ba' AS uuid)) THEN
    RAISE EXCEPTION 'there is another access control of the name mesh: delete it (Advanced, Access Controls)';
  END IF;
  IF EXISTS (SELECT FROM v_dialplans WHERE dialplan_context = 'mesh' AND dialplan_uuid <> CAST('4e813313-7338-54b6-ae1a-2da7e4a25947' AS uuid)) THEN
    RAISE EXCEPTION 'there is another dialplan in the context mesh: delete it (Dialplan, Dialplan Manager)';
  END IF;
  IF EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'mesh' AND sip_profile_uuid <> CAST('f1a9e6c3-ac42-5fcf-b153-4981563e7a87' AS uuid)) THEN
    RAISE WARNING 'another node of this database has a profile mesh too: FusionPBX lists every user of other nodes once for each. Give each node a profile of its own, such as freeswitch.mesh_profile: mesh-HOSTNAME';
  END IF;
END
$pbxmesh$;

-- What an earlier run put in.
DELETE FROM v_sip_profile_settings WHERE sip_profile_uuid = 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87';
DELETE FROM v_sip_profiles WHERE sip_profile_uuid = 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87';
DELETE FROM v_dialplan_details WHERE dialplan_uuid = '4e813313-7338-54b6-ae1a-2da7e4a25947';
DELETE FROM v_dialplans WHERE dialplan_uuid = '4e813313-7338-54b6-ae1a-2da7e4a25947';
DELETE FROM v_access_control_nodes WHERE access_control_uuid = '045b210c-d76c-5625-8b51-e5604dd226ba';
DELETE FROM v_access_controls WHERE access_control_uuid = '045b210c-d76c-5625-8b51-e5604dd226ba';

INSERT INTO v_sip_profiles (sip_profile_uuid, sip_profile_name, sip_profile_hostname, sip_profile_enabled, sip_profile_description)
VALUES ('f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'mesh', NULL, 'true', 'pbxmesh: calls between nodes. Written by pbxmesh fsconf.');
INSERT INTO v_sip_profile_settings (sip_profile_setting_uuid, sip_profile_uuid, sip_profile_setting_name, sip_profile_setting_value, sip_profile_setting_enabled, sip_profile_setting_description)
VALUES
  ('a0090858-ed1f-53c3-ab31-bfad6ba588f8', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'sip-ip', '192.0.2.10', 'true', ''),
  ('36eefae3-7d4a-5eb8-ab07-9ba6744a488b', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'rtp-ip', '192.0.2.10', 'true', ''),
  ('d48bbd8e-be94-55a2-b6e9-512648e269f4', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'sip-port', '5090', 'true', ''),
  ('c8dccf6b-ae71-57b3-b5be-cedc21feebbf', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'dialplan', 'XML', 'true', ''),
  ('9c92ff00-b44b-5082-9e2e-82dcedc981fa', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'context', 'mesh', 'true', 'rings devices of this switch only: a call between nodes cannot loop'),
  ('fc571110-e3a3-5d98-9a5f-c3a4e96b8976', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'auth-calls', 'true', 'true', 'whom the list lets in is not asked for a password'),
  ('7ec49b08-5fd5-5a04-a6a0-82937f8258ea', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'auth-calls-acl-only', 'true', 'true', 'everybody else is refused, and not asked either: a challenge would let anybody try passwords'),
  ('08b220d2-7459-5b4e-b103-e4dae81f2b11', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'apply-inbound-acl', 'mesh', 'true', 'the nodes of the mesh, see acl.conf'),
  ('3f524d1f-b0e4-5d97-94ed-3c3f0c7c5ded', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'disable-register', 'true', 'true', ''),
  ('b88e6699-3825-59b5-bc29-21cc80f2e1e4', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'manage-presence', 'false', 'true', 'lamps belong to the phones'' profiles'),
  ('e88f7aaf-196b-5b2d-bb46-9af909f6d91f', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'multiple-registrations', 'true', 'true', 'one row for each remote node that a user is on'),
  ('79566f73-e097-5bba-8784-501c8ca16bca', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'timer-T1X64', '4000', 'true', 'a call to a dead node fails after 4 s instead of 32 s'),
  ('ea61cb31-2193-5790-a52a-4925b8fef75d', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'enable-timer', 'true', 'true', 'session timers (RFC 4028): a call whose other node died ends within 90 s, a held one goes on'),
  ('c97e4eca-5272-508e-97ea-330ebfcce3b6', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'session-timeout', '90', 'true', ''),
  ('a0ff7690-8489-5fd8-bc51-5aa47d304c38', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'minimum-session-expires', '90', 'true', ''),
  ('1f28ac6f-54f0-5746-9b83-6dbc8317b4a3', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'update-refresher', 'true', 'true', 'by UPDATE, which leaves the media alone'),
  ('a3bc48ad-081e-5040-bbcf-80d243544e99', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'inbound-late-negotiation', 'true', 'true', 'the callee''s phone chooses among all codecs that the caller''s has, as on one switch'),
  ('1bd8817b-6ceb-504a-a62a-ab2331a9b8d4', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'inbound-codec-prefs', '$${global_codec_prefs}', 'true', ''),
  ('716a2392-4ef8-505a-b1c9-eb4a53631898', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'outbound-codec-prefs', '$${global_codec_prefs}', 'true', ''),
  ('cf35b6b2-ad4f-548d-9300-ca9ba9a61075', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'dtmf-type', 'info', 'true', 'digits cross whatever the codec: telephone-event at the rate of opus is not heard by the sending switch'),
  ('ced7a921-8cf5-5ea8-95b3-68a16e4c696d', 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87', 'rtp-timer-name', 'soft', 'true', '');

-- FusionPBX puts its global dialplans (user_exists and others) into every context, in
-- the order of dialplan_order: 5 is before them.
INSERT INTO v_dialplans (dialplan_uuid, app_uuid, dialplan_context, dialplan_name, dialplan_order, dialplan_continue, dialplan_enabled, dialplan_description, dialplan_xml)
VALUES ('4e813313-7338-54b6-ae1a-2da7e4a25947', '742714e5-8cdf-32fd-462c-cbe7e3d655db', 'mesh', 'mesh-in', 5, 'false', 'true', 'pbxmesh: calls between nodes. Written by pbxmesh fsconf.', '<extension name="mesh-in" continue="false" uuid="4e813313-7338-54b6-ae1a-2da7e4a25947">
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
    <action application="bridge" data="{presence_id=$1@${sip_req_host},sip_invite_domain=${sip_req_host}}${sofia_contact(internal/$1@${sip_req_host})}"/>
    <!-- without it a callee who does not answer would be told to the caller''s node as NORMAL_CLEARING -->
    <action application="hangup" data="${originate_disposition}"/>
  </condition>
</extension>
');
INSERT INTO v_dialplan_details (dialplan_detail_uuid, dialplan_uuid, dialplan_detail_tag, dialplan_detail_type, dialplan_detail_data, dialplan_detail_group, dialplan_detail_order, dialplan_detail_enabled)
VALUES
  ('4e041b2e-7912-59f2-a848-50f0e749e097', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'condition', '${sip_req_host}', '^[A-Za-z0-9._-]{1,253}$', 0, 5, 'true'),
  ('3cb660f0-d870-5051-9cef-3b77f9e1468a', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'condition', 'destination_number', '^([A-Za-z0-9._+-]{1,64})$', 0, 10, 'true'),
  ('82b859ae-d562-5581-a54b-d3abe9a52e04', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'set', 'hangup_after_bridge=true', 0, 15, 'true'),
  ('6cc250f3-d04f-56f5-b3e5-e6448fd66547', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'set', 'domain_name=${sip_req_host}', 0, 20, 'true'),
  ('c7ea2167-7817-587b-87fb-e52ac3405531', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'set', 'force_transfer_context=${user_data($1@${sip_req_host} var user_context)}', 0, 25, 'true'),
  ('ad8a55a0-d0d9-50ee-a74c-bd33ce979ae3', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'set', 'process_cdr=false', 0, 30, 'true'),
  ('eee4d3a3-2392-5e9c-ab93-4dd06c148b4a', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'set', 'sip_exclude_contact=pbxmesh-row', 0, 35, 'true'),
  ('ae9fa116-7313-5fad-9904-f243a4268db4', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'set', 'execute_on_blind_transfer_pbxmesh=multiset ^^:process_cdr=:sip_exclude_contact=:pbxmesh_transferred=true', 0, 40, 'true'),
  ('e8acfa02-0b76-5455-8ec3-7fb7a907e85e', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'export', 'nolocal:alert_info=${alert_info}', 0, 45, 'true'),
  ('9ac82caf-b8d7-506d-bab1-73daddd6b70a', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'export', 'nolocal:sip_auto_answer=${sip_auto_answer_detected}', 0, 50, 'true'),
  ('7897a971-91cb-5530-b4a9-a26d76e7b0eb', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'export', 'nolocal:sip_h_Privacy=${sip_Privacy}', 0, 55, 'true'),
  ('98694794-f7ac-5cf4-8b16-07dd9d640248', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'set', 'pbxmesh_hash=${hash(insert/${sip_req_host}-call_return/$1/${caller_id_number})}', 0, 60, 'true'),
  ('2adc111e-2a6b-5741-9e28-7c54430091c5', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'set', 'pbxmesh_hash=${hash(insert/${sip_req_host}-last_dial_ext/$1/${uuid})}', 0, 65, 'true'),
  ('d0181ceb-3801-5218-beb9-19c4434c1d41', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'set', 'domain_uuid=${user_data($1@${sip_req_host} var domain_uuid)}', 0, 70, 'true'),
  ('7ac1fb77-4e11-5d6a-bcbf-37a8093d4b87', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'set', 'accountcode=${user_data($1@${sip_req_host} var accountcode)}', 0, 75, 'true'),
  ('de02e9c1-fc99-5fde-b1d7-cde03e2868bd', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'set', 'toll_allow=${user_data($1@${sip_req_host} var toll_allow)}', 0, 80, 'true'),
  ('5a4d2773-95a7-56b3-bb44-a1e4594004e0', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'bridge', '{presence_id=$1@${sip_req_host},sip_invite_domain=${sip_req_host}}${sofia_contact(internal/$1@${sip_req_host})}', 0, 85, 'true'),
  ('ef2b02ad-e807-586f-a12b-c14c1cd41e0a', '4e813313-7338-54b6-ae1a-2da7e4a25947', 'action', 'hangup', '${originate_disposition}', 0, 90, 'true');

INSERT INTO v_access_controls (access_control_uuid, access_control_name, access_control_default, access_control_description)
VALUES ('045b210c-d76c-5625-8b51-e5604dd226ba', 'mesh', 'deny', 'pbxmesh: calls between nodes. Written by pbxmesh fsconf.');
INSERT INTO v_access_control_nodes (access_control_node_uuid, access_control_uuid, node_type, node_cidr, node_description)
VALUES
  ('22a80380-61e6-5caf-82b5-69b36dd182f1', '045b210c-d76c-5625-8b51-e5604dd226ba', 'allow', '192.0.2.10/32', 'buffalo'),
  ('9c9f7805-2513-5300-9aed-87608553a032', '045b210c-d76c-5625-8b51-e5604dd226ba', 'allow', '198.51.100.20/32', 'london');

COMMIT;
