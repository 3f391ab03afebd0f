-- pbxmesh fsconf: remove the calls between nodes, for FusionPBX.
--
-- Run it with:  psql -v ON_ERROR_STOP=1 -d fusionpbx -f FILE
-- Then, on the switch:
--   fs_cli -x 'sofia profile far stop'
--   rm -f /var/cache/fusionpbx/dialplan.far /var/cache/fusionpbx/configuration.acl.conf /var/cache/fusionpbx/*.configuration.sofia.conf
--   fs_cli -x 'memcache delete dialplan:far'         (with memcached instead of files)
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
    WHERE p.sip_profile_name = 'far' AND (p.sip_profile_description = 'pbxmesh: calls between nodes. Written by pbxmesh fsconf.' OR p.sip_profile_uuid = CAST('ca49bc4c-138a-5827-be2e-930c27d517d2' AS uuid))
    ORDER BY p.sip_profile_uuid <> CAST('ca49bc4c-138a-5827-be2e-930c27d517d2' AS uuid), host LOOP
    IF own.id = CAST('ca49bc4c-138a-5827-be2e-930c27d517d2' AS uuid) OR own.address = '192.0.2.10' THEN
      DELETE FROM v_sip_profile_settings WHERE sip_profile_uuid = own.id;
      DELETE FROM v_sip_profiles WHERE sip_profile_uuid = own.id;
      RETURN;
    END IF;
    hosts := COALESCE(hosts || ', ', '') || CASE own.host WHEN '' THEN 'no --hostname (address ' || own.address || ')' ELSE '--hostname ' || own.host END;
  END LOOP;
  IF hosts IS NOT NULL THEN
    RAISE EXCEPTION 'the profile far was written with %: run pbxmesh fsconf with --flavor fusionpbx --undo for each, on the node itself or with its configuration', hosts;
  END IF;
END
$pbxmesh$;

-- Another node of this database may still need these.
DELETE FROM v_dialplan_details WHERE dialplan_uuid = 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'far');
DELETE FROM v_dialplans WHERE dialplan_uuid = 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'far');
DELETE FROM v_access_control_nodes WHERE access_control_uuid = '41ec875a-9c65-5910-9c8c-7e00d92e73f0' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'far');
DELETE FROM v_access_controls WHERE access_control_uuid = '41ec875a-9c65-5910-9c8c-7e00d92e73f0' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'far');

COMMIT;
