-- pbxmesh fsconf: remove the calls between nodes, for FusionPBX.
--
-- Run it with:  psql -v ON_ERROR_STOP=1 -d fusionpbx -f FILE
-- Then, on the switch:
--   fs_cli -x 'sofia profile mesh stop'
--   rm -f /var/cache/fusionpbx/dialplan.mesh /var/cache/fusionpbx/configuration.acl.conf /var/cache/fusionpbx/*.configuration.sofia.conf
--   fs_cli -x 'memcache delete dialplan:mesh'         (with memcached instead of files)
--   fs_cli -x 'memcache delete configuration:acl.conf'
--   fs_cli -x "memcache delete $(hostname):configuration:sofia.conf"
--   fs_cli -x reloadacl
\set ON_ERROR_STOP on
BEGIN;

DO $pbxmesh$
DECLARE
  own record;
  hosts text;
BEGIN
  FOR own IN 
    SELECT p.sip_profile_uuid AS id, COALESCE(p.sip_profile_hostname, '') AS host,
      (SELECT s.sip_profile_setting_value FROM v_sip_profile_settings s WHERE s.sip_profile_uuid = p.sip_profile_uuid
        AND s.sip_profile_setting_name IN ('ext-sip-ip', 'sip-ip') ORDER BY s.sip_profile_setting_name LIMIT 1) AS address
    FROM v_sip_profiles p
    WHERE p.sip_profile_name = 'mesh' AND (p.sip_profile_description = 'pbxmesh: calls between nodes. Written by pbxmesh fsconf.' OR p.sip_profile_uuid = CAST('f1a9e6c3-ac42-5fcf-b153-4981563e7a87' AS uuid))
    ORDER BY p.sip_profile_uuid <> CAST('f1a9e6c3-ac42-5fcf-b153-4981563e7a87' AS uuid), host LOOP
    IF own.id = CAST('f1a9e6c3-ac42-5fcf-b153-4981563e7a87' AS uuid) OR own.address = '192.0.2.10' THEN
      DELETE FROM v_sip_profile_settings WHERE sip_profile_uuid = own.id;
      DELETE FROM v_sip_profiles WHERE sip_profile_uuid = own.id;
      RETURN;
    END IF;
    hosts := COALESCE(hosts || ', ', '') || CASE own.host WHEN '' THEN 'no --hostname (address ' || own.address || ')' ELSE '--hostname ' || own.host END;
  END LOOP;
  IF hosts IS NOT NULL THEN
    RAISE EXCEPTION 'the profile mesh was written with %: run pbxmesh fsconf with --flavor fusionpbx --undo for each, on the node itself or with its configuration', hosts;
  END IF;
END
$pbxmesh$;

-- Another node of this database may still need these.
DELETE FROM v_dialplan_details WHERE dialplan_uuid = '4e813313-7338-54b6-ae1a-2da7e4a25947' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'mesh');
DELETE FROM v_dialplans WHERE dialplan_uuid = '4e813313-7338-54b6-ae1a-2da7e4a25947' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'mesh');
DELETE FROM v_access_control_nodes WHERE access_control_uuid = '045b210c-d76c-5625-8b51-e5604dd226ba' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'mesh');
DELETE FROM v_access_controls WHERE access_control_uuid = '045b210c-d76c-5625-8b51-e5604dd226ba' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'mesh');

COMMIT;
